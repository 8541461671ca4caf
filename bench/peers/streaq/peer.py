"""streaq on a Redis stream, results not kept."""

from contextlib import asynccontextmanager

import uvloop
from streaq import Worker

from bench.inside import main
from bench.order import connect, pay_in_session


class Client:
    def __init__(self, worker, tasks):
        self._worker, self._tasks = worker, tasks

    async def one(self, job, n):
        await self._tasks[job].enqueue(n)

    async def many(self, job, numbers):
        await self._worker.enqueue_many([self._tasks[job].enqueue(n) for n in numbers])


def worker_of(given):
    sessions = connect(given.database_url, given.slots)
    worker = Worker(redis_url=given.redis_url, concurrency=given.slots)

    @worker.task(name="noop", ttl=0)
    async def noop(n: int) -> None:
        given.tally.mark(n)

    @worker.task(name="order", ttl=0)
    async def order(n: int) -> None:
        given.tally.mark(n)
        await pay_in_session(sessions, n)

    return worker, {"noop": noop, "order": order}


@asynccontextmanager
async def producer(given):
    worker, tasks = worker_of(given)
    async with worker:
        yield Client(worker, tasks)


async def work(given):
    worker, _ = worker_of(given)
    await worker.run_async()


if __name__ == "__main__":
    main(uvloop.run, producer, work)
