"""`--burst` ends when nothing that this worker knows is due."""

import asyncio
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.conftest import Burst, Effects
from tests.consumer.jobs import PING, Ping, Pong
from worker.handler import Handler
from worker.outbox import enqueue, enqueue_many
from worker.queue import Queue
from worker.relay import Relay


async def test_it_ends_at_once_where_there_is_nothing(burst: Burst) -> None:
    assert (await burst(PING)).outcomes == []


async def test_it_does_what_is_in_the_outbox_and_in_redis_and_what_those_jobs_enqueue(
    arq: ArqRedis, burst: Burst, session: AsyncSession, effects: Effects
) -> None:
    async def countdown(job: Pong, session: AsyncSession) -> None:
        if job.n > 0:
            enqueue(session, Pong(n=job.n - 1))

    enqueue_many(session, [Ping(n=n) for n in range(20)])
    enqueue(session, Pong(n=5))
    await session.commit()
    await Queue(arq).enqueue_many(Ping(n=n) for n in range(20))
    told = await burst(PING, Handler(Pong, countdown))
    assert len(told.outcomes) == 46
    assert len(await effects()) == 40


async def test_it_does_not_wait_for_the_next_poll_to_end(arq: ArqRedis, burst: Burst) -> None:
    """Where the last acknowledgement has gone with a claim, too: those of the first two do while the third runs."""

    async def end_apart(job: Ping, _session: AsyncSession) -> None:
        await asyncio.sleep(job.n * 0.004)

    await Queue(arq).enqueue_many(Ping(n=n) for n in range(3))
    told = await burst(Handler(Ping, end_apart, once=False), poll_delay=60)  # which is given 20 s
    assert len(told.outcomes) == 3


async def test_what_is_not_due_and_what_it_does_not_know_stays(
    arq: ArqRedis, burst: Burst, session: AsyncSession, effects: Effects
) -> None:
    enqueue(session, Ping(), delay=timedelta(hours=1))
    enqueue(session, Pong())
    await session.commit()
    assert (await burst(PING)).outcomes == []
    assert await arq.zcard("arq:queue") == 2


async def test_a_server_that_goes_away_while_it_looks_for_more_does_not_end_it(
    burst: Burst, session: AsyncSession, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, errors = Relay.drain, [RedisConnectionError("gone"), OSError("gone")]

    async def broken(self: Relay) -> int:
        if errors:
            raise errors.pop()
        return await drain(self)

    monkeypatch.setattr(Relay, "drain", broken)
    job_id = enqueue(session, Ping())
    await session.commit()
    await burst(PING)
    assert await effects() == [job_id]


async def test_after_a_wipe_of_redis_it_does_what_is_sent_again(
    arq: ArqRedis, session: AsyncSession, burst: Burst, effects: Effects
) -> None:
    """Where each burst finds a new Redis, it would end before the relay has sent anything again, each time."""

    async def nothing(_job: Pong, _session: AsyncSession) -> None:
        """Only another app's burst sends it, and leaves it."""

    job_id = enqueue(session, Ping())
    await session.commit()
    await burst(Handler(Pong, nothing))
    assert await arq.exists(f"arq:job:{job_id}")
    await arq.flushall()
    await burst(PING)
    assert await effects() == [job_id]
