"""A Redis that is there and refuses: its memory is full, or a key of arq's belongs to something else."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from redis.exceptions import OutOfMemoryError

from tests.consumer.conftest import Effects, Logged, Work, redis_events
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.support.waiting import wait_until
from worker.outcome import Completed
from worker.queue import Queue
from worker.wire import ABORT_SET


@pytest.fixture
async def full(arq: ArqRedis) -> AsyncIterator[None]:
    """Twenty jobs wait, and no more fits."""
    await Queue(arq).enqueue_many(Ping(n=n) for n in range(20))
    await arq.config_set("maxmemory", "1mb")
    yield
    await arq.config_set("maxmemory", "0")


@pytest.mark.usefixtures("full")
async def test_what_lies_in_a_full_redis_is_carried_out_and_leaves_it(
    arq: ArqRedis, work: Work, effects: Effects, logged: Logged
) -> None:
    with pytest.raises(OutOfMemoryError):
        await Queue(arq).enqueue(Ping())
    async with work(PING) as worker:

        async def all_are_done() -> bool:
            return len(worker.outcomes) == 20

        async def is_empty() -> bool:
            waiting: int = await arq.zcard("arq:queue")
            return waiting == 0

        await wait_until(all_are_done)
        await wait_until(is_empty)
    assert len(await effects()) == 20
    assert redis_events(logged) == ["redis_refuses"]


async def test_an_abort_set_that_is_something_else_is_told_once_and_stops_nothing(
    arq: ArqRedis, work: Work, effects: Effects, logged: Logged
) -> None:
    await arq.set(ABORT_SET, "x")
    gate = Gate()
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    async with work(calling(gate), poll_delay=0.02) as worker:
        async with asyncio.timeout(10):
            await gate.reached.wait()

        async def is_told() -> bool:
            return redis_events(logged) != []

        await wait_until(is_told)
        gate.opened.set()
        assert await worker.outcome(job_id) == Completed("opened")
        later = await Queue(arq).enqueue(Ping())
        assert later is not None
        assert await worker.outcome(later) == Completed("opened")
    await arq.delete(ABORT_SET)
    assert redis_events(logged) == ["redis_refuses"]
    assert await effects() == [job_id, later]
