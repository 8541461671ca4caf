"""The plain loop: the same handler code with neither ledger nor queue, and the ledger's write without a worker.

With the variant `run` an order's transaction also writes its run, which is the least that "exactly once" takes.

What these reach is what SQLAlchemy and PostgreSQL leave for anybody who queues such jobs.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from bench.inside import Given
from bench.order import connect, pay, pay_in_session

Sessions = async_sessionmaker[AsyncSession]
Job = Callable[[Sessions, int], Awaitable[None]]

WRITE = """
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, result, finished_at)
values ({id}, 1, 'bench.kept', 'arq:queue', 'completed', false, 'null', clock_timestamp())
"""
WRITE_RUN = text(WRITE.format(id=":id"))
WRITE_RUN_BY_DRIVER = WRITE.format(id="$1")


async def order_once(sessions: Sessions, n: int) -> None:
    """The order, and its run in the same transaction, written by the driver: the cheapest way that there is."""
    async with sessions() as session:
        await pay(session, n)
        raw = await (await session.connection()).get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.execute(WRITE_RUN_BY_DRIVER, str(n))
        await session.commit()


async def kept(sessions: Sessions, n: int) -> None:
    """Open a session, write the run, commit: what "done once" costs at least, as one statement."""
    async with sessions() as session:
        await session.execute(WRITE_RUN, {"id": str(n)})
        await session.commit()


JOBS: dict[str, Job] = {"order": pay_in_session, "kept": kept, "run": order_once}


async def work(given: Given, job: Job) -> None:
    """As many tasks as there are slots, over one pool, until each number was taken once."""
    sessions = connect(given.database_url, given.slots)
    numbers = iter(range(given.tally.jobs))

    async def take(numbers: Iterator[int]) -> None:
        for n in numbers:
            given.tally.mark(n)
            await job(sessions, n)

    await asyncio.gather(*(take(numbers) for _ in range(given.slots)))


if __name__ == "__main__":
    if sys.argv[1] == "work":
        given = Given.from_environment()
        uvloop.run(work(given, JOBS[given.variant or sys.argv[2]]))
