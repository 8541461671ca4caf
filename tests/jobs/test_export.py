import asyncio
import csv
import importlib
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asyncpg import DivisionByZeroError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.files import Files
from jobs.users.contracts import ExportUsers
from jobs.users.export import export_users
from jobs.users.formats import COLUMNS
from tests.jobs.shop import LONG_AGO, Shop, a_user, names, rows
from worker.app import App
from worker.errors import Permanent
from worker.handler import Handler
from worker.outcome import Dead, Retrying
from worker.shield import in_thread
from worker.testing import perform

CREATED = datetime(2021, 1, 2, tzinfo=UTC)


@pytest.fixture
async def session(session: AsyncSession) -> AsyncSession:
    """With two users in it, the second active."""
    await a_user(session, "a@x", is_active=False, created_at=CREATED)
    await a_user(session, "b@x", last_seen_at=LONG_AGO, created_at=CREATED)
    return session


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    if kind == "parquet":
        parquet: Any = importlib.import_module("pyarrow.parquet")  # it has no types
        table: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return table
    with path.open(newline="") as file:
        return [json.loads(line) for line in file] if kind == "ndjson" else list(csv.DictReader(file))


def size(path: Path) -> int:
    return path.stat().st_size


async def test_csv(app: App, tmp_path: Path, session: AsyncSession) -> None:
    result = await perform(app, ExportUsers(path="out/users.csv"), session)
    assert result == {"rows": 2, "bytes": size(tmp_path / "out/users.csv")}
    first, second = read(tmp_path / "out/users.csv", "csv")
    assert tuple(first) == COLUMNS
    assert list(first.values())[1:] == ["a@x", "Ada", "false", "", "2021-01-02 00:00:00+00:00"]
    assert (second["is_active"], second["last_seen_at"]) == ("true", "2021-01-01 12:00:00+00:00")


async def test_ndjson(app: App, tmp_path: Path, session: AsyncSession) -> None:
    await perform(app, ExportUsers(path="users.ndjson", format="ndjson"), session)
    first, second = read(tmp_path / "users.ndjson", "ndjson")
    assert list(first.values())[1:] == ["a@x", "Ada", False, None, "2021-01-02T00:00:00+00:00"]
    assert second["last_seen_at"] == "2021-01-01T12:00:00+00:00"


async def test_parquet(app: App, tmp_path: Path, session: AsyncSession) -> None:
    result = await perform(app, ExportUsers(path="users.parquet", format="parquet"), session)
    assert result == {"rows": 2, "bytes": size(tmp_path / "users.parquet")}
    first, second = read(tmp_path / "users.parquet", "parquet")
    assert list(first.values())[1:] == ["a@x", "Ada", False, None, CREATED]
    assert second["last_seen_at"] == LONG_AGO


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
async def test_active_users_alone(app: App, tmp_path: Path, session: AsyncSession, kind: str) -> None:
    job = ExportUsers.model_validate({"path": "users", "format": kind, "active_only": True})
    assert (await perform(app, job, session))["rows"] == 1
    assert [user["email"] for user in read(tmp_path / "users", kind)] == ["b@x"]


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
async def test_no_user_at_all(app: App, tmp_path: Path, session: AsyncSession, kind: str) -> None:
    await session.execute(text("delete from users"))
    job = ExportUsers.model_validate({"path": "users", "format": kind})
    assert (await perform(app, job, session))["rows"] == 0
    assert read(tmp_path / "users", kind) == []


async def test_more_users_than_are_in_memory_at_once(app: App, tmp_path: Path, session: AsyncSession) -> None:
    await session.execute(
        text("insert into users (email, name) select n || '@example.com', '' from generate_series(1, 4500) as n")
    )
    for kind in ("csv", "ndjson", "parquet"):
        job = ExportUsers.model_validate({"path": kind, "format": kind})
        assert (await perform(app, job, session))["rows"] == 4502
        assert [int(user["id"]) for user in read(tmp_path / kind, kind)] == [
            user_id for (user_id,) in await rows(session, "select id from users order by id")
        ]


async def test_an_export_that_fails_on_its_way_leaves_the_old_file_and_no_draft(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    job = ExportUsers(path="users.csv")
    await perform(app, job, session)
    before = read(tmp_path / "users.csv", "csv")
    await session.execute(text("alter table users rename to people"))
    await session.execute(
        text(
            "create view users as select id, email, name, 1 / (id - max(id) over ()) = 1 as is_active, "
            "last_seen_at, created_at from people"
        )
    )
    with pytest.raises(DivisionByZeroError):
        await perform(app, job, session)
    assert read(tmp_path / "users.csv", "csv") == before
    assert names(tmp_path) == ["users.csv"]


async def test_a_missing_pyarrow_is_a_sentence(
    app: App, tmp_path: Path, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Permanent, match="Parquet needs pyarrow; install it"):
        await perform(app, ExportUsers(path="users.parquet", format="parquet"), session)
    assert names(tmp_path) == []


async def test_a_path_that_leads_out_is_dead(shop: Shop, tmp_path: Path) -> None:
    outcome = await shop.outcome(ExportUsers(path="../users.csv"))
    assert isinstance(outcome, Dead)
    assert "leads out of WORKER_FILES_DIR" in outcome.error
    assert names(tmp_path) == []


NASTY = ('"', "\\", "\\.", "\\N", "a,b", "line\r\nbreak", "\t\x01\x02\x7f", "", " ", "é💶", "null", "true", "1")
KINDS = pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])


async def test_the_three_formats_hold_the_same_values(app: App, tmp_path: Path, session: AsyncSession) -> None:
    await session.execute(text("set local timezone = 'Asia/Kolkata'"))
    for number, name in enumerate(NASTY):
        seen = None if number % 2 else datetime(2024, 2, 29, 23, 59, 59, number, tzinfo=UTC)
        await a_user(session, f"{number}@x", is_active=number % 3 == 0, last_seen_at=seen, created_at=CREATED)
        await session.execute(
            text("update users set name = :name where email = :mail"), {"name": name, "mail": f"{number}@x"}
        )
    for kind in ("csv", "ndjson", "parquet"):
        await perform(app, ExportUsers.model_validate({"path": kind, "format": kind}), session)
    users = [
        dict(zip(COLUMNS, user, strict=True))
        for user in await rows(session, f"select {', '.join(COLUMNS)} from users order by id")
    ]
    assert [user["name"] for user in users[2:]] == list(NASTY)
    assert read(tmp_path / "parquet", "parquet") == users
    assert [typed(line) for line in read(tmp_path / "csv", "csv")] == users
    assert [typed(line) for line in read(tmp_path / "ndjson", "ndjson")] == users


def typed(line: dict[str, Any]) -> dict[str, Any]:
    """A line of text as the values that it means."""
    seen, created = (datetime.fromisoformat(at) if at else None for at in (line["last_seen_at"], line["created_at"]))
    active = line["is_active"] in {True, "true"}
    return {**line, "id": int(line["id"]), "is_active": active, "last_seen_at": seen, "created_at": created}


@pytest.fixture
async def heavy(shop: Shop) -> Shop:
    """With 200 users whose names are long: 20 MB, more than the sockets between us and PostgreSQL hold."""
    async with shop.engine.begin() as connection:
        await connection.execute(
            text("insert into users (email, name) select n || '@x', repeat('x', 100000) from generate_series(1, 200) n")
        )
    return shop


@KINDS
async def test_an_export_is_of_one_moment(
    heavy: Shop, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = 0

    async def change_and_go_on(function: Callable[..., object], *arguments: object) -> object:
        nonlocal pieces
        pieces += 1
        async with heavy.engine.begin() as connection:
            await connection.execute(text("delete from users where id = (select max(id) from users)"))
            await connection.execute(
                text("insert into users (email, name) values (:n || '@late', '')"), {"n": str(pieces)}
            )
        return await in_thread(function, *arguments)

    before = [user_id for (user_id,) in await heavy.rows("select id from users order by id")]
    monkeypatch.setattr("worker.bulk.streaming.in_thread", change_and_go_on)
    result = await heavy.result(ExportUsers.model_validate({"path": "users", "format": kind}))
    assert result["rows"] == 200
    assert pieces > 1
    assert [int(user["id"]) for user in read(tmp_path / "users", kind)] == before


@KINDS
async def test_a_cancelled_export_leaves_nothing(
    heavy: Shop, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = asyncio.Event()

    async def stop_here(function: Callable[..., object], *arguments: object) -> object:
        await in_thread(function, *arguments)
        writing.set()
        return await asyncio.Event().wait()

    job = ExportUsers.model_validate({"path": "users", "format": kind})
    with monkeypatch.context() as patched:
        patched.setattr("worker.bulk.streaming.in_thread", stop_here)
        attempt = asyncio.create_task(heavy.outcome(job))
        await asyncio.wait_for(writing.wait(), 20)
        assert len(names(tmp_path)) == 1  # the draft
        attempt.cancel()
        await asyncio.wait({attempt}, timeout=20)
    assert attempt.done()
    assert names(tmp_path) == []
    assert (await heavy.result(job))["rows"] == 200  # the pool's connections are as good as before


async def test_a_timeout_leaves_nothing(heavy: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(function: Callable[..., object], *arguments: object) -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr("worker.bulk.streaming.in_thread", never)
    export = Handler(ExportUsers, partial(export_users, files=Files(tmp_path)), timeout=timedelta(milliseconds=200))
    outcome = await Shop(App(handlers=[export]), heavy.engine).outcome(ExportUsers(path="users.csv"))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")
    assert names(tmp_path) == []
