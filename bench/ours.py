"""Ratchet as a contender: the client, and the real `worker run`."""

import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import uvloop
from sqlalchemy.ext.asyncio import AsyncSession

from bench.app import JOBS
from bench.inside import Given, Producer, main
from bench.order import connect
from worker.broker import connect_broker
from worker.outbox import enqueue, enqueue_many
from worker.queue import Queue


class Direct:
    """Straight to Redis."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def one(self, job: str, n: int) -> object:
        return await self._queue.enqueue(JOBS[job](n=n))

    async def many(self, job: str, numbers: Sequence[int]) -> object:
        return await self._queue.enqueue_many([JOBS[job](n=n) for n in numbers])


class Outbox:
    """In a transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def one(self, job: str, n: int) -> object:
        """Returns when the commit had returned."""
        enqueue(self._session, JOBS[job](n=n))
        await self._session.commit()
        return monotonic()

    async def many(self, job: str, numbers: Sequence[int]) -> object:
        enqueue_many(self._session, [JOBS[job](n=n) for n in numbers])
        await self._session.commit()
        self._session.expunge_all()
        return None


@asynccontextmanager
async def producer(given: Given) -> AsyncGenerator[Producer]:
    if given.variant == "outbox":
        sessions = connect(given.database_url, 1)
        async with sessions() as session:
            yield Outbox(session)
    else:
        async with connect_broker(given.redis_url) as redis:
            yield Direct(Queue(redis))


def work(given: Given) -> None:
    """Become `worker run`, set up for speed as the peers are; the rest is as it comes."""
    settings = {
        "WORKER_APP": "bench.app:app",
        "WORKER_CONCURRENCY": str(given.slots),
        "WORKER_KEEP_RESULT": "0",
        "WORKER_LOG_LEVEL": "warning",
    }
    command = str(Path(sys.executable).with_name("worker"))
    os.execve(command, [command, "run"], {**settings, **os.environ})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work(Given.from_environment())
    else:
        main(uvloop.run, producer, None)
