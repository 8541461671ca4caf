"""Rows of an input that were refused: kept with their chunk, and written to a file once, at the end."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler
from worker.outcome import Completed, Retrying
from worker.rejects import keep_rejects, write_rejects
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
