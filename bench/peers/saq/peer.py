"""SAQ on Redis, results not kept, as many Redis operations at once as there are slots."""

import asyncio
from contextlib import asynccontextmanager

import uvloop
from saq import Job, Queue, Worker

from bench.inside import main
from bench.order import connect, pay_in_session


class Client:
    def __init__(self, queue):
        self._queue = queue

    async def one(self, job, n):
        await self._queue.enqueue(Job(job, kwargs={"n": n}, ttl=-1))

    async def many(self, job, numbers):
        # SAQ has no bulk enqueue; this is for filling a queue before a run.
        await asyncio.gather(*(self.one(job, n) for n in numbers))


def queue_of(given):
    return Queue.from_url(given.redis_url, max_concurrent_ops=max(20, given.slots))


@asynccontextmanager
async def producer(given):
    queue = queue_of(given)
    await queue.connect()
    yield Client(queue)
    await queue.disconnect()


async def work(given):
    sessions = connect(given.database_url, given.slots)

    async def noop(ctx, *, n):
        given.tally.mark(n)

    async def order(ctx, *, n):
        given.tally.mark(n)
        await pay_in_session(sessions, n)

    worker = Worker(queue_of(given), [("noop", noop), ("order", order)], concurrency=given.slots)
    await worker.queue.connect()
    await worker.queue.sweep()  # else the first sweep aborts a job that is just being taken
    await worker.start()


if __name__ == "__main__":
    main(uvloop.run, producer, work)
