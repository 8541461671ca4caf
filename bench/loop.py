"""The plain loop: the same handler code with neither ledger nor queue, and the ledger's write without a worker.

What these reach is what SQLAlchemy and PostgreSQL leave for anybody who queues such jobs.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator

import uvloop
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from bench.inside import Given
from bench.order import connect, pay_in_session

WRITE_RUN = text("""
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, result, finished_at)
values (:id, 1, 'bench.kept', 'arq:queue', 'completed', false, 'null', clock_timestamp())
""")


async def order(sessions: async_sessionmaker[AsyncSession], n: int) -> None:
    await pay_in_session(sessions, n)


async def kept(sessions: async_sessionmaker[AsyncSession], n: int) -> None:
    """Open a session, write the run, commit: what "done once" costs at least, as one statement."""
    async with sessions() as session:
        await session.execute(WRITE_RUN, {"id": str(n)})
        await session.commit()


async def work(given: Given, job: Callable[[async_sessionmaker[AsyncSession], int], Awaitable[None]]) -> None:
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
        uvloop.run(work(Given.from_environment(), {"order": order, "kept": kept}[sys.argv[2]]))
