"""`worker run` with several processes, on real servers, and what its jobs left behind."""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.conftest import StartWorker
from tests.support.locks import locked as holding
from tests.support.processes import WorkerProcess
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.job import Job
from worker.outbox import enqueue

ENV = {
    "WORKER_APP": "tests.processes.app:app",
    "WORKER_PROCESSES": "2",
    "WORKER_CONCURRENCY": "1",
    "WORKER_LEASE": "1",
    "WORKER_SHUTDOWN_GRACE": "1",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_POLL_DELAY": "0.02",
}
LOCK = 7

Enqueue = Callable[..., Awaitable[list[str]]]
Effects = Callable[[], Awaitable[Sequence[int]]]
Locked = Callable[[], AbstractAsyncContextManager[None]]


class Run(Protocol):
    async def __call__(self, *args: str, **env: str) -> WorkerProcess:
        """Start `worker run ARGS…`, by default with two processes of one job at once."""
        ...


@pytest.fixture
def run(start_worker: StartWorker) -> Run:
    async def start(*args: str, **env: str) -> WorkerProcess:
        return await start_worker("run", *args, **{**ENV, **env})

    return start


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=4, application="test")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (pid int)"))
    yield engine
    await engine.dispose()


@pytest.fixture
def enqueued(engine: AsyncEngine) -> Enqueue:
    """Enqueue jobs in one transaction; their ids are returned."""

    async def enqueue_all(*jobs: Job) -> list[str]:
        async with AsyncSession(engine) as session, session.begin():
            return [enqueue(session, job) for job in jobs]

    return enqueue_all


@pytest.fixture
def effects(engine: AsyncEngine) -> Effects:
    """Give what lists the pid of each effect that is committed."""

    async def committed() -> Sequence[int]:
        async with engine.connect() as connection:
            return (await connection.scalars(text("SELECT pid FROM effect"))).all()

    return committed


@pytest.fixture
def locked(engine: AsyncEngine) -> Locked:
    """Hold the lock for which `Wait` waits, until the block ends."""
    return partial(holding, engine, LOCK)


async def children(worker: WorkerProcess, count: int = 2) -> list[int]:
    """Return the pids of the first `count` processes that the supervisor started."""
    return [(await worker.wait_for("process_started", count=n + 1))["pid"] for n in range(count)]


async def wait_until_gone(*pids: int) -> None:
    async def are_gone() -> bool:
        return not any(map(_lives, pids))

    await wait_until(are_gone)


def _lives(pid: int) -> bool:
    """A zombie whose new parent doesn't read its exit code doesn't live."""
    command = ["/bin/ps", "-o", "stat=", "-p", str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in {"", "Z"}
