"""PgQueuer over asyncpg, its tables logged as they come."""

from contextlib import asynccontextmanager

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from bench.inside import main
from bench.order import connect, pay_in_session

BATCH = 200
"""Jobs a dequeue of no-ops. 10 and 50 were slower; 100, 200 and 500 were alike, on a machine that was busy."""


class Client:
    def __init__(self, queries):
        self._queries = queries

    async def one(self, job, n):
        await self._queries.enqueue(job, b"%d" % n, 0)

    async def many(self, job, numbers):
        await self._queries.enqueue([job] * len(numbers), [b"%d" % n for n in numbers], [0] * len(numbers))


@asynccontextmanager
async def producer(given):
    connection = await asyncpg.connect(given.database_url)
    yield Client(Queries(AsyncpgDriver(connection)))
    await connection.close()


async def setup(given):
    connection = await asyncpg.connect(given.database_url)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def work(given):
    """`orders`: as many at once as there are connections. Else it starts whatever it finds, as it comes."""
    sessions = connect(given.database_url, given.slots)
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(given.database_url)))

    @pgq.entrypoint("noop")
    async def noop(job):
        given.tally.mark(int(job.payload))

    @pgq.entrypoint("order")
    async def order(job):
        n = int(job.payload)
        given.tally.mark(n)
        await pay_in_session(sessions, n)

    if given.variant == "orders":
        await pgq.run(batch_size=given.slots // 2, max_concurrent_tasks=given.slots)
    else:
        await pgq.run(batch_size=BATCH)


if __name__ == "__main__":
    main(uvloop.run, producer, work, setup)
