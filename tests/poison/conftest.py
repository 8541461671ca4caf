"""Jobs that are suspects from the start, and what the ledger keeps of their deaths."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import StartWorker
from tests.support.processes import WorkerProcess
from worker.database import create_engine
from worker.job import Job
from worker.queue import Queue

ENV = {
    "WORKER_APP": "tests.poison.app:app",
    "WORKER_LEASE": "1",
    "WORKER_SHUTDOWN_GRACE": "1",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_POLL_DELAY": "0.02",
}

Query = Callable[..., Awaitable[Sequence[Any]]]
Suspected = Callable[..., Awaitable[list[str]]]


class Run(Protocol):
    async def __call__(self, **env: str) -> WorkerProcess:
        """Start `worker run` with this app and short leases."""
        ...


@pytest.fixture
def run(start_worker: StartWorker) -> Run:
    async def start(**env: str) -> WorkerProcess:
        return await start_worker("run", **{**ENV, **env})

    return start


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=4, application="test")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (job_id text)"))
    yield engine
    await engine.dispose()


@pytest.fixture
def query(engine: AsyncEngine) -> Query:
    async def rows(statement: str, **values: object) -> Sequence[Any]:
        async with engine.connect() as connection:
            return (await connection.execute(text(statement), values)).all()

    return rows


@pytest.fixture
def suspected(redis: Redis) -> Suspected:
    """Send jobs straight to Redis, where it looks as if the worker that had them was killed."""

    async def send(*jobs: Job) -> list[str]:
        queue = Queue(redis)
        ids = [job_id for job in jobs if (job_id := await queue.enqueue(job))]
        await redis.zadd("ratchet:leases:arq:queue", dict.fromkeys(ids, 1))
        return ids

    return send
