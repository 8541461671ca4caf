"""arq: as it comes, and tuned (100 slots, a look every 10 ms, no results kept)."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import uvloop
from arq import create_pool, func
from arq.connections import RedisSettings
from arq.worker import Worker

from bench.inside import main
from bench.order import connect, pay_in_session


class Client:
    def __init__(self, redis):
        self._redis = redis

    async def one(self, job, n):
        await self._redis.enqueue_job(job, n)

    async def many(self, job, numbers):
        # arq has no bulk enqueue; this is for filling a queue before a run.
        await asyncio.gather(*(self._redis.enqueue_job(job, n) for n in numbers))


@asynccontextmanager
async def producer(given):
    redis = await create_pool(RedisSettings.from_dsn(given.redis_url))
    yield Client(redis)
    await redis.aclose()


async def noop(tally, ctx, n):
    tally.mark(n)


async def order(tally, sessions, ctx, n):
    tally.mark(n)
    await pay_in_session(sessions, n)


async def work(given):
    sessions = connect(given.database_url, given.slots)
    functions = [
        func(partial(noop, given.tally), name="noop"),
        func(partial(order, given.tally, sessions), name="order"),
    ]
    redis = await create_pool(RedisSettings.from_dsn(given.redis_url))
    tuned = {"max_jobs": given.slots, "poll_delay": 0.01, "keep_result": 0}
    await Worker(functions, redis_pool=redis, **(tuned if given.variant == "tuned" else {})).main()


if __name__ == "__main__":
    main(uvloop.run, producer, work)
