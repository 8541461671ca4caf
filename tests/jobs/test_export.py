import csv
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncpg import DivisionByZeroError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.users.contracts import ExportUsers
from jobs.users.formats import COLUMNS
from tests.jobs.shop import LONG_AGO, Shop, a_user, names, rows
from worker.app import App
from worker.errors import Permanent
from worker.outcome import Dead
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
    with pytest.raises(Permanent, match=r"Parquet needs pyarrow; install ratchet\[parquet\]"):
        await perform(app, ExportUsers(path="users.parquet", format="parquet"), session)
    assert names(tmp_path) == []


async def test_a_path_that_leads_out_is_dead(shop: Shop, tmp_path: Path) -> None:
    outcome = await shop.outcome(ExportUsers(path="../users.csv"))
    assert isinstance(outcome, Dead)
    assert "leads out of WORKER_FILES_DIR" in outcome.error
    assert names(tmp_path) == []
