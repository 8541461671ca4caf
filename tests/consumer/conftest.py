"""A worker in the test's own process, as `worker run` would start it, with short leases."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from structlog.testing import capture_logs

from tests.consumer.redis_proxy import RedisProxy
from tests.consumer.told import Told
from worker.app import App
from worker.broker import connect_broker
from worker.database import create_engine
from worker.dev import EmbeddedValkey
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
Logged = Sequence[MutableMapping[str, Any]]


class Burst(Protocol):
    async def __call__(self, *handlers: AnyHandler, **settings: Any) -> Told:
        """Run a worker until nothing that it knows is due."""
        ...


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
    """Give a worker that runs until the block ends: `async with work(Handler(…), concurrency=1) as worker`."""

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
async def effects(engine: AsyncEngine) -> Effects:
    """Make the table in which jobs leave their effects, and give what lists their ids."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (job_id text)"))

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
