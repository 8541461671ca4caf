"""Workers behind PgBouncer in transaction mode. `.ci/run` runs the jobs' own tests through it, too."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import StartWorker
from tests.ha.app import TABLES
from tests.ha.load import ENV, load_on
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer
from worker.database import connect, create_engine
from worker.dev import EmbeddedPostgres
from worker.driver import SERVER_SETTINGS
from worker.faults import LOCK_NOT_AVAILABLE, sqlstate
from worker.settings import SettingsError, load_settings

pytestmark = needs_pgbouncer


@pytest.fixture(scope="module")
def bouncer(postgres: EmbeddedPostgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres) as bouncer:
        yield bouncer


@pytest.fixture
def bounced(postgres: EmbeddedPostgres, bouncer: PgBouncer, template: str) -> Iterator[str]:
    """Give the URL of a database of the test's own, through PgBouncer, which keeps connections to it until the end."""
    name = f"bounced_{uuid4().hex}"
    postgres.psql(f"create database {name} template {template} strategy file_copy")
    postgres.psql(*TABLES, database=name)
    yield bouncer.url(name)
    left = bouncer.clients(name)
    postgres.psql(f"drop database {name} with (force)")
    assert left == []


@pytest.fixture
async def engine(bounced: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(bounced, pool_size=6, pgbouncer=True)
    yield engine
    await engine.dispose()


async def test_a_worker_runs_through_it_and_applies_each_job_once(
    bounced: str, engine: AsyncEngine, start_worker: StartWorker
) -> None:
    worker = await start_worker(**ENV, DATABASE_URL=bounced, WORKER_PGBOUNCER="true")
    async with load_on(engine) as load:
        await worker.wait_for("marked", count=100, timeout=60)
    await load.is_applied_once()
    assert await worker.stop() == 0


async def test_statements_leave_nothing_on_servers_that_others_use_next(bounced: str, engine: AsyncEngine) -> None:
    async def ask(n: int) -> int:
        async with engine.begin() as connection:
            return int((await connection.execute(text(f"select {n} + :m"), {"m": 1})).scalar_one())

    for _ in range(10):
        assert await asyncio.gather(*(ask(n) for n in range(6))) == [n + 1 for n in range(6)]
    async with engine.begin() as connection:
        left = await connection.execute(text("select count(*) from pg_prepared_statements"))
        assert left.scalar_one() <= 1  # this one


async def test_the_lock_timeout_goes_with_every_transaction(bounced: str, engine: AsyncEngine) -> None:
    async with engine.begin() as holder, engine.connect() as waiter:
        await holder.execute(text("select pg_advisory_xact_lock(1)"))
        await waiter.execute(text("set local lock_timeout = 1"))  # of this transaction alone
        await waiter.rollback()
        assert (await waiter.execute(text("show lock_timeout"))).scalar_one() == "2s"
        await waiter.execute(text("set local lock_timeout = 1"))
        with pytest.raises(DBAPIError) as refusal:
            await waiter.execute(text("select pg_advisory_xact_lock(1)"))
        assert sqlstate(refusal.value) == LOCK_NOT_AVAILABLE


async def test_without_the_setting_a_sentence_names_it(bounced: str, start_worker: StartWorker) -> None:
    with pytest.raises(SettingsError, match="set WORKER_PGBOUNCER=true"):
        await connect(bounced, "test")
    refused = await start_worker("doctor", **ENV, DATABASE_URL=bounced)
    assert await refused.wait() == 2
    assert "set WORKER_PGBOUNCER=true" in refused.output


async def test_the_doctor_tells_how_it_is_set_up(
    bounced: str, postgres: EmbeddedPostgres, start_worker: StartWorker
) -> None:
    env = {**ENV, "DATABASE_URL": bounced, "WORKER_PGBOUNCER": "true"}
    bare = await start_worker("doctor", "--json", **env)
    assert await bare.wait() == 0, bare.output
    assert "WORKER_LISTEN_URL" in next(line["text"] for line in bare.lines if line["check"] == "notify")
    past_it = postgres.database_url(urlsplit(bounced).path.strip("/"))
    heard = await start_worker("doctor", "--json", **env, WORKER_LISTEN_URL=past_it)
    assert await heard.wait() == 0, heard.output
    assert {"check": "notify", "verdict": "ok", "text": "A notification arrived."} in heard.lines


async def test_the_doctor_finds_a_pooler_that_swallows_what_it_ought_to_refuse(
    postgres: EmbeddedPostgres, database_url: str, start_worker: StartWorker
) -> None:
    with PgBouncer(postgres, ignored=",".join(SERVER_SETTINGS)) as silent:
        url = silent.url(urlsplit(database_url).path.strip("/"))
        asked = await start_worker("doctor", "--json", **ENV, DATABASE_URL=url, WORKER_LISTEN_URL=database_url)
        await asked.wait()
    found = next(line for line in asked.lines if line["check"] == "pooler")
    assert found["verdict"] == "warning"
    assert "WORKER_PGBOUNCER=true" in found["text"]


def test_nobody_listens_through_it() -> None:
    through = {"database_url": "postgresql:///any", "pgbouncer": True}
    assert load_settings(**through).listens_at is None
    listens_at = load_settings(**through, listen_url="postgresql:///past").listens_at
    assert listens_at is not None
    assert listens_at.get_secret_value() == "postgresql:///past"
