"""Rows of an input that were refused: kept with their chunk, and written to a file once, at the end."""

import asyncio
import csv
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler
from worker.outcome import Completed, Retrying
from worker.rejects import as_csv, keep_rejects, write_rejects
from worker.retry import RetryPolicy


def importing(target: Path, *, fails_at: int = 0) -> ChunkedHandler[Count, int]:
    """Reject one row a chunk; write the file in the last one."""

    async def handle(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        await keep_rejects(session, [(at, "no e-mail", b"row %d,\xff\r\n" % at)])
        if at == fails_at:
            raise ValueError
        if at < job.upto:
            return chunk.step(at, counts={"rejected": 1})
        written = await write_rejects(session, target)
        return chunk.step(None, counts={"rejected": 1}, result={"written": written})

    return ChunkedHandler(Count, handle, cursor=int, retry=RetryPolicy(base=timedelta(0)))


def files(folder: Path) -> dict[str, list[str]]:
    """Names and lines."""
    return {path.name: path.read_text().splitlines() for path in folder.iterdir()}


async def rejected(bench: Bench) -> list[int]:
    return [line for (line,) in await bench.all("select line from worker.reject order by line")]


async def test_rejects_are_kept_in_their_chunks_transaction(bench: Bench, tmp_path: Path) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    assert isinstance(await bench.run(importing(tmp_path / "r.csv", fails_at=2), delivery), Retrying)
    assert await rejected(bench) == [1]
    assert isinstance(await bench.run(importing(tmp_path / "r.csv"), delivery), Completed)
    assert await rejected(bench) == [1, 2, 3]


async def test_the_rejects_file_is_written_once_at_the_end_and_is_whole(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "rejects.csv"
    delivery = await bench.enqueued(Count(upto=3))
    await bench.run(importing(target, fails_at=3), delivery)
    assert files(tmp_path) == {}
    assert await bench.run(importing(target), delivery) == Completed({"rejected": 3, "written": 3})
    rows = [f'{at},no e-mail,"row {at},\\xff"' for at in (1, 2, 3)]
    assert files(tmp_path) == {"rejects.csv": ["line,reason,row", *rows]}  # and no temporary name is left


async def test_the_disk_is_waited_for_in_a_thread(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all other jobs of the process wait for it too."""
    in_loop: list[str] = []
    main = threading.get_ident()

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            if threading.get_ident() == main:
                in_loop.append(name)
            return function(*arguments)

        return called

    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", noting("replace", Path.replace))
    monkeypatch.setattr(csv, "writer", noting("writer", csv.writer))
    await bench.run(importing(tmp_path / "rejects.csv"), await bench.enqueued(Count(upto=3)))
    assert len((tmp_path / "rejects.csv").read_text().splitlines()) == 4
    assert in_loop == []


async def test_one_that_is_cancelled_leaves_no_file(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def waiting(rows: Any) -> bytes:
        begun.set()
        assert may_go_on.wait(10)
        return as_csv(rows)

    monkeypatch.setattr("worker.rejects.as_csv", waiting)
    running = asyncio.create_task(bench.run(importing(tmp_path / "rejects.csv"), await bench.enqueued(Count(upto=1))))
    await asyncio.to_thread(begun.wait, 10)
    running.cancel()
    may_go_on.set()
    with suppress(asyncio.CancelledError):
        await running
    assert files(tmp_path) == {}


async def test_rejects_of_many_batches_are_all_written_in_order(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.rejects.ROWS_AT_ONCE", 2)
    await bench.run(importing(tmp_path / "rejects.csv"), await bench.enqueued(Count(upto=5)))
    with (tmp_path / "rejects.csv").open(newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5"]


async def test_the_file_holds_the_rejects_of_its_own_run_alone(bench: Bench, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        await bench.run(importing(tmp_path / name), await bench.enqueued(Count(upto=2)))
    assert {name: len(lines) for name, lines in files(tmp_path).items()} == {"a.csv": 3, "b.csv": 3}


async def test_without_rejects_there_is_no_file(bench: Bench, tmp_path: Path) -> None:
    async def clean(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        await keep_rejects(session, [])
        return chunk.step(None, counts={"written": await write_rejects(session, tmp_path / "r.csv")})

    handler = ChunkedHandler(Count, clean, cursor=int)
    assert await bench.run(handler, await bench.enqueued(Count())) == Completed({"written": 0})
    assert files(tmp_path) == {}
