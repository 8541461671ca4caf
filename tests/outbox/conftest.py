"""One database for all tests of this folder, emptied after each: they are many, and a copy for each takes its time."""

from collections.abc import AsyncIterator, Callable, Iterator
from uuid import uuid4

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.outbox.hands import Hands, Stage
from tests.support.leaks import connection_leaks
from worker.broker import connect_broker
from worker.database import create_engine
from worker.dev import EmbeddedPostgres

EMPTY = (
    "delete from worker.outbox",
    "delete from worker.run",
    "delete from worker.cron_tick",
    "update worker.relay_state set epoch = 1, marker = null, redis_run_id = null, raised_at = null, swept_at = null",
    "delete from applied",
)

Psql = Callable[..., str]


@pytest.fixture(scope="session")
def outbox_database(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"outbox_{uuid4().hex}"
    postgres.psql(f"create database {name} template {template} strategy file_copy")
    columns = "seq bigint generated always as identity, id text, ms bigint, noted text"
    postgres.psql(f"create table applied ({columns})", database=name)
    yield name
    leaks = connection_leaks(postgres, name)
    postgres.psql(f"drop database {name} with (force)")
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, outbox_database: str) -> str:
    return postgres.database_url(outbox_database)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=12)
    yield engine
    async with engine.begin() as connection:
        for statement in EMPTY:
            await connection.execute(text(statement))
    await engine.dispose()


@pytest.fixture
async def broker(redis_url: str) -> AsyncIterator[ArqRedis]:
    broker = connect_broker(redis_url)
    yield broker
    await broker.aclose()


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def hands(engine: AsyncEngine, broker: ArqRedis, stage: Stage) -> Hands:
    return Hands(engine, broker, stage)


@pytest.fixture
def psql(postgres: EmbeddedPostgres, outbox_database: str, engine: AsyncEngine) -> Psql:
    """Run statements with psql in the test's database, each in a transaction of its own; it returns rows as lines."""

    def psql(*statements: str) -> str:
        return postgres.psql(*statements, database=outbox_database)

    return psql


@pytest.fixture
async def producer(engine: AsyncEngine, database_url: str) -> AsyncIterator[AsyncConnection]:
    """A connection as somebody who has the role worker_producer and nothing else."""
    async with engine.begin() as connection:
        for statement in (
            "drop role if exists sql_producer",
            "create role sql_producer login in role worker_producer",
        ):
            await connection.execute(text(statement))
    theirs = create_engine(database_url.replace("postgres@", "sql_producer@"), pool_size=1)
    async with theirs.connect() as connection:
        yield connection
    await theirs.dispose()
    async with engine.begin() as connection:
        await connection.execute(text("drop role sql_producer"))
