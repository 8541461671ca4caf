"""PostgreSQL 15 is the oldest that is supported: the whole life of a job on it, where it is installed."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, Table, select, text, update
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

from worker.app import App
from worker.bulk import Upserted, update_many, upsert
from worker.database import create_engine
from worker.dev import EmbeddedPostgres
from worker.errors import Permanent
from worker.handler import Handler
from worker.job import Job
from worker.migrate import migrate
from worker.outbox import enqueue
from worker.testing import drain

INSTALLED = Path("/usr/lib/postgresql/15/bin")

pytestmark = pytest.mark.skipif(
    not (INSTALLED / "postgres").exists(), reason="PostgreSQL 15 (Debian's postgresql-15) isn't installed here"
)


class Greet(Job, name="test.greet"):
    who: str


async def greet(job: Greet, session: AsyncSession) -> str:
    if job.who == "nobody":
        raise Permanent("There is nobody to greet.")
    # What 17's transaction_timeout does, this does before it: a stopped worker's transaction ends.
    shown = await session.execute(text("show idle_in_transaction_session_timeout"))
    return f"{job.who} {shown.scalar_one()}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedPostgres(durable=False, installed=INSTALLED) as server:
        migrate(server.url)
        yield server.url


async def test_jobs_run_fail_and_leave_their_runs_on_postgresql_15(url: str) -> None:
    app = App(handlers=(Handler(Greet, greet, timeout=timedelta(seconds=30)),))
    engine = create_engine(url, pool_size=3, application="ratchet test")
    try:
        async with AsyncSession(engine) as session, session.begin():
            enqueue(session, Greet(who="somebody"))
            enqueue(session, Greet(who="nobody"), key="a key")
            await session.execute(text("""select worker.enqueue('test.greet', '{"who": "sql"}')"""))
        await drain(app, engine)
        async with engine.connect() as connection:
            runs = await connection.execute(text("select status, result, error from worker.run order by created_at"))
            found = {(row.status, row.result, row.error) for row in runs}
            version = (await connection.execute(text("show server_version"))).scalar_one()
            left = (await connection.execute(text("select count(*) from worker.outbox"))).scalar_one()
    finally:
        await engine.dispose()
    assert version.startswith("15.")
    assert left == 0
    assert found == {
        ("completed", "somebody 1min", None),
        ("completed", "sql 1min", None),
        ("dead", None, "Permanent: There is nobody to greet."),
    }


async def test_keys_of_citext_are_upserted_and_updated_and_the_last_row_of_a_key_wins(url: str) -> None:
    """Here, since the extension comes with Debian's PostgreSQL and not with the one that is embedded."""
    table = Table("insensitive", MetaData(), Column("id", CITEXT, primary_key=True), Column("v", CITEXT))
    columns, key = list(table.c), [table.c.id]
    engine = create_engine(url, pool_size=1, application="ratchet test")
    async with AsyncSession(engine) as session:
        await session.execute(text("create extension citext"))
        await session.execute(CreateTable(table))
        assert await upsert(session, table, columns, [("a", "first"), ("A", "last")], key=key) == Upserted(1, 0)
        assert await upsert(session, table, columns, [("A", "again"), ("b", "b")], key=key) == Upserted(1, 1)
        for keys in ("aA", "Aa"):
            rows = [(keys[0], "first"), (keys[1], "last"), ("c", "nobody")]
            assert await update_many(session, table, columns, rows) == 1
            assert (await session.execute(select(table).order_by(table.c.id))).all() == [("A", "last"), ("b", "b")]
            await session.execute(update(table).values(v="old").where(table.c.id == "a"))
    await engine.dispose()
