"""A worker in the test's own process, as `worker run` would start it, with short leases."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from structlog.testing import capture_logs

from tests.consumer.redis_proxy import RedisProxy
from tests.consumer.told import Told
from tests.support.leaks import connection_leaks
from worker.app import App
from worker.broker import connect_broker
from worker.consumer import Worker
from worker.database import create_engine
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.handler import AnyHandler
from worker.runtime import run_worker
from worker.settings import load_settings


class RunningWorker(Told):
    """A worker in this process, and what it told."""

    task: asyncio.Task[None]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send this process a signal, which the worker has to handle."""
        assert signal.getsignal(number) not in {signal.SIG_DFL, signal.default_int_handler}
        os.kill(os.getpid(), number)

    async def stop(self) -> None:
        """Ask it to stop and wait for its end."""
        self.signal()
        async with asyncio.timeout(20):
            await self.task


Work = Callable[..., AbstractAsyncContextManager[RunningWorker]]
Effects = Callable[[], Awaitable[list[str]]]
Make = Callable[..., Worker]
Logged = Sequence[MutableMapping[str, Any]]


def redis_events(logged: Logged) -> list[str]:
    """What was said of Redis."""
    return [line["event"] for line in logged if str(line["event"]).startswith("redis_")]


class Burst(Protocol):
    async def __call__(self, *handlers: AnyHandler, **settings: Any) -> Told:
        """Run a worker until nothing that it knows is due."""
        ...


# What a test may have left. Who relayed to which Redis is forgotten too: the next test's is empty.
EMPTY = """
DO $$
DECLARE name text;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
        WHERE schemaname IN ('worker', 'public') AND tablename NOT IN ('alembic_version', 'relay_state')
    LOOP EXECUTE 'DELETE FROM ' || name; END LOOP;
    UPDATE worker.relay_state SET epoch = 1, marker = NULL, redis_run_id = NULL, raised_at = NULL;
END $$
"""


@pytest.fixture(scope="session")
def shared_url(postgres: EmbeddedPostgres, template: str) -> str:
    """One database for all, which each test leaves empty: to copy one takes longer than most tests do."""
    name = f"consumer_{uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    postgres.psql("CREATE TABLE effect (job_id text)", database=name)
    return postgres.database_url(name)


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, shared_url: str) -> Iterator[str]:
    """Give the shared database. Every connection to it must be closed when the test ends."""
    name = urlsplit(shared_url).path.strip("/")
    yield shared_url
    if not postgres.is_running():
        postgres.start()
    leaks = connection_leaks(postgres, name)
    postgres.psql(EMPTY, database=name)
    assert leaks == []


@pytest.fixture
def settings(database_url: str, redis_url: str) -> dict[str, Any]:
    """Overrides of the settings: quick looks, and the shortest lease there is."""
    return {
        "database_url": database_url,
        "redis_url": redis_url,
        "lease": 1,
        "poll_delay": 0.02,
        "relay_poll": 0.2,
        "shutdown_grace": 5,
        "concurrency": 4,
    }


@pytest.fixture
def work(settings: dict[str, Any]) -> Work:
    """Run a worker in this process until the block ends; takes handlers, and settings by name."""

    @asynccontextmanager
    async def running(*handlers: AnyHandler, **overrides: Any) -> AsyncGenerator[RunningWorker]:
        worker = RunningWorker()
        app, chosen = App(handlers=handlers), load_settings(**{**settings, **overrides})
        worker.task = asyncio.create_task(run_worker(app, chosen, worker))
        try:
            yield worker
        finally:
            worker.task.cancel()
            await asyncio.gather(worker.task, return_exceptions=True)

    return running


@pytest.fixture
def burst(settings: dict[str, Any]) -> Burst:
    async def run(*handlers: AnyHandler, **overrides: Any) -> Told:
        told = Told()
        async with asyncio.timeout(20):
            await run_worker(App(handlers=handlers), load_settings(**{**settings, **overrides}), told, burst=True)
        return told

    return run


@pytest.fixture
async def arq(redis_url: str) -> AsyncIterator[ArqRedis]:
    """arq's own client, with our JSON codecs."""
    client = connect_broker(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def make(arq: ArqRedis) -> AsyncIterator[Make]:
    """Make a worker of plain functions, with arq's arguments."""

    def worker(*functions: Any, **arguments: Any) -> Worker:
        chosen: dict[str, Any] = {"redis_pool": arq, "poll_delay": 0.02, "burst": True, **arguments}
        return Worker(functions, **chosen)

    yield worker
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(signum)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=4, application="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A producer's session."""
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session


@pytest.fixture
def effects(engine: AsyncEngine) -> Effects:
    """Give what lists the ids of the jobs whose effects are committed."""

    async def committed() -> list[str]:
        async with engine.begin() as connection:
            return list(await connection.scalars(text("SELECT job_id FROM effect ORDER BY job_id")))

    return committed


@pytest.fixture
async def proxy(valkey: EmbeddedValkey) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(valkey.url) as proxy:
        yield proxy


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Give the structured log lines of this process as they come."""
    with capture_logs() as lines:
        yield lines
