"""SIGTERM: nothing more is claimed, running jobs get a grace, the rest is handed back, and no attempt is burnt."""

import asyncio
import signal
from contextlib import suppress
from typing import Any

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Effects, Logged, Work
from tests.consumer.jobs import PING, Gate, Ping, calling, leave_effect
from tests.support.waiting import wait_until
from worker import shield
from worker.availability import Availability
from worker.chunk import Chunk, Step
from worker.claim import Claim
from worker.claims import Claims
from worker.handler import ChunkedHandler, Handler
from worker.heartbeat import live_workers
from worker.outbox import enqueue
from worker.outcome import Completed, Released, Yielded
from worker.queue import Queue


async def test_a_job_that_ends_within_the_grace_is_settled_and_nothing_more_is_claimed(
    arq: ArqRedis, work: Work, effects: Effects, logged: Logged
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        worker.signal()

        async def is_stopping() -> bool:
            return any(line["event"] == "stopping" for line in logged)

        await wait_until(is_stopping)
        await Queue(arq).enqueue(Ping(), job_id="waiting")
        gate.opened.set()
        await worker.task
    assert worker.outcomes == [("running", Completed("opened"))]
    assert await arq.zrange("arq:queue", 0, -1) == [b"waiting"]
    assert await arq.keys("arq:in-progress:*") == []
    assert await effects() == ["running"]
    assert await live_workers(arq) == []
    assert [(line["signal"], line["running"], line["grace_s"]) for line in logged if line["event"] == "stopping"] == [
        ("SIGTERM", 1, 5.0)
    ]


async def test_a_job_that_does_not_end_is_rolled_back_even_in_a_running_query_and_another_worker_does_it(
    arq: ArqRedis, work: Work, session: AsyncSession, engine: AsyncEngine, effects: Effects
) -> None:
    sleep = "SELECT pg_sleep(60)"

    async def slow(_job: Ping, session: AsyncSession) -> None:
        await leave_effect(session)
        await session.execute(text(sleep))

    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(Handler(Ping, slow), shutdown_grace=0.2) as worker:

        async def is_asleep() -> bool:
            async with engine.connect() as connection:
                asking = text("SELECT count(*) FROM pg_stat_activity WHERE query = :query")
                return bool((await connection.execute(asking, {"query": sleep})).scalar_one())

        await wait_until(is_asleep)
        await worker.stop()
        assert not await is_asleep()
    assert worker.of(job_id) == [Released("the worker stops")]
    assert await effects() == []
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM worker.attempt"))).scalar_one() == 0
    async with work(PING) as another:
        assert await another.outcome(job_id) == Completed({"n": 0})
    assert await effects() == [job_id]


async def test_the_second_signal_cuts_the_grace_short(arq: ArqRedis, work: Work, effects: Effects) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), shutdown_grace=3600) as worker:
        await gate.reached.wait()
        worker.signal()
        worker.signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await worker.task
    assert worker.of("running") == [Released("the worker stops")]
    assert await arq.zscore("arq:queue", "running") is not None
    assert await effects() == []


async def test_a_signal_does_not_break_off_the_cleaning_up(
    arq: ArqRedis, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Availability.close

    async def told_meanwhile(self: Availability) -> None:
        worker.signal(signal.SIGINT)
        await close(self)

    monkeypatch.setattr(Availability, "close", told_meanwhile)
    await Queue(arq).enqueue(Ping(), job_id="first")
    async with work(PING) as worker:
        await worker.outcome("first")
        await worker.stop()


async def test_a_chunked_job_yields_between_two_chunks_and_resumes_elsewhere(
    arq: ArqRedis, work: Work, session: AsyncSession, effects: Effects
) -> None:
    gate = Gate()

    async def count(_job: Ping, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        done = (chunk.cursor or 0) + 1
        await leave_effect(session)
        if done == 2:
            await gate()
        return chunk.step(done if done < 4 else None, done=1, counts={"rows": 1})

    handler = ChunkedHandler(Ping, count, cursor=int)
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(handler) as worker:
        await gate.reached.wait()
        worker.signal()
        gate.opened.set()
        await worker.task
    assert worker.of(job_id) == [Yielded()]
    assert await effects() == [job_id] * 2
    async with work(handler) as another:
        assert await another.outcome(job_id) == Completed({"rows": 4})
    assert await effects() == [job_id] * 4


async def test_a_cancellation_that_a_library_swallows_is_sent_again(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12 asyncio.wait_for may do so, with which redis-py's own connections send their commands."""
    monkeypatch.setattr(shield, "CANCEL_AGAIN_S", 0.05)
    looking, gate = asyncio.Event(), Gate()
    take = Claims.take

    async def swallow(self: Claims, *given: Any) -> list[Claim]:
        if gate.reached.is_set() and not looking.is_set():
            looking.set()
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return await take(self, *given)

    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await gate()
        await asyncio.Event().wait()

    monkeypatch.setattr(Claims, "take", swallow)
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(stubborn), shutdown_grace=0) as worker:
        await looking.wait()
        await worker.stop()
    assert worker.of("running") == [Released("the worker stops")]
    assert await effects() == []
