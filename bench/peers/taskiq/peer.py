"""taskiq on a Redis stream with acknowledgements, without a result backend, as it comes otherwise."""

import asyncio
import logging
from contextlib import asynccontextmanager

import uvloop
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from bench.inside import main
from bench.order import connect, pay_in_session


class Client:
    def __init__(self, tasks):
        self._tasks = tasks

    async def one(self, job, n):
        await self._tasks[job].kiq(n)

    async def many(self, job, numbers):
        # taskiq has no bulk enqueue; this is for filling a queue before a run.
        await asyncio.gather(*(self._tasks[job].kiq(n) for n in numbers))


def broker_of(given):
    """consumer_id 0: the group begins with what was queued before the worker came."""
    sessions = connect(given.database_url, given.slots)
    broker = RedisStreamBroker(given.redis_url, consumer_id="0")

    async def noop(n: int) -> None:
        given.tally.mark(n)

    async def order(n: int) -> None:
        given.tally.mark(n)
        await pay_in_session(sessions, n)

    return broker, {
        "noop": broker.register_task(noop, task_name="noop"),
        "order": broker.register_task(order, task_name="order"),
    }


@asynccontextmanager
async def producer(given):
    broker, tasks = broker_of(given)
    await broker.startup()
    yield Client(tasks)
    await broker.shutdown()


async def work(given):
    logging.disable(logging.INFO)
    broker, _ = broker_of(given)
    broker.is_worker_process = True
    await broker.startup()
    await run_receiver_task(broker, max_async_tasks=given.slots, max_prefetch=given.slots)


if __name__ == "__main__":
    main(uvloop.run, producer, work)
