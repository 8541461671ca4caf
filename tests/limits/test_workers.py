"""Limits and pauses over several real workers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.conftest import StartWorker
from tests.consumer.conftest import Burst, Effects, Logged, Work
from tests.consumer.jobs import PING, Gate, Ping, Pong, calling, leave_effects
from tests.limits.app import GATE
from tests.support.waiting import wait_until
from worker.chunk import Chunk, Step
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.limits import Rate
from worker.outbox import enqueue
from worker.outbox import enqueue_many as enqueue_all
from worker.outcome import Completed, Released
from worker.pauses import Kind, pause, resume
from worker.queue import Queue

QUEUE = "arq:queue"
PARKED = "ratchet:parked:arq:queue/ping"
HOUR = timedelta(hours=1)


@pytest.fixture
async def gate_is_shut(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """Hold the jobs' advisory lock until the session's transaction ends."""
    async with AsyncSession(engine) as session:
        await session.execute(text("SELECT pg_advisory_xact_lock(:gate)"), {"gate": GATE})
        yield session


async def are_parked(redis: ArqRedis, count: int) -> None:
    async def so_many() -> bool:
        return bool(await redis.zcard(PARKED) == count)

    await wait_until(so_many)


async def answer_nothing(_job: Pong, _session: AsyncSession) -> None:
    """Do nothing."""


async def is_heard(logged: Logged) -> None:
    async def is_said() -> bool:
        return any(line["event"] == "paused" for line in logged)

    await wait_until(is_said)


async def are_done(effects: Effects, ids: Sequence[str]) -> None:
    async def all_of_them() -> bool:
        return await effects() == sorted(ids)

    await wait_until(all_of_them)


async def test_never_more_at_once_than_the_limit_over_two_workers(arq: ArqRedis, work: Work, effects: Effects) -> None:
    running, most = 0, 0

    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1

    limited = calling(count, max_concurrent=2)
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(40))
    async with work(limited, poll_delay=60), work(limited, poll_delay=60):
        await are_done(effects, ids)
    assert most == 2


async def test_a_worker_that_is_killed_leaks_no_permit(
    arq: ArqRedis, start_worker: StartWorker, gate_is_shut: AsyncSession, effects: Effects
) -> None:
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(3))
    options = {"WORKER_APP": "tests.limits.app:app", "WORKER_LEASE": "1"}
    first = await start_worker(**options)
    await first.wait_for("began")
    await first.kill()
    second = await start_worker(**options)
    await second.wait_for("began")
    await are_parked(arq, 2)
    await gate_is_shut.rollback()
    await are_done(effects, ids)
    await second.stop()
    assert await arq.zcard("ratchet:permits:ping") == 0


async def test_a_wipe_of_redis_lets_no_more_run_at_once_than_the_limit(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    gate, running, most = Gate(), 0, 0

    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate()
        running -= 1

    async with work(calling(count, max_concurrent=1)) as worker:
        await Queue(arq).enqueue(Ping(), job_id="first")
        await gate.reached.wait()
        await arq.flushall()
        await Queue(arq).enqueue(Ping(), job_id="second")
        await are_parked(arq, 1)
        gate.opened.set()
        await worker.outcome("second")
    assert await effects() == ["first", "second"]
    assert most == 1


async def test_a_rate_is_one_for_all_workers(arq: ArqRedis, burst: Burst, effects: Effects) -> None:
    limited = calling(lambda: None, rate=Rate(3, HOUR))
    await Queue(arq).enqueue_many(Ping(n=n) for n in range(5))
    await asyncio.gather(burst(limited, concurrency=1), burst(limited, concurrency=1))
    assert len(await effects()) == 3
    await are_parked(arq, 2)
    await arq.flushall()


async def test_a_worker_of_another_app_leaves_alone_what_a_limit_holds_back(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    """It would put back each for some seconds, in which who knows the job has nothing to start."""
    gate = Gate()
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(10))
    async with work(calling(gate, max_concurrent=1)):
        await gate.reached.wait()
        await are_parked(arq, 9)
        async with work(Handler(Pong, answer_nothing), queues=(QUEUE, "other")) as other:
            for turn in range(3):
                await Queue(arq, "other").enqueue(Pong(), job_id=f"other-{turn}")
                await other.outcome(f"other-{turn}")
            await are_parked(arq, 9)
            gate.opened.set()
            await are_done(effects, ids)


async def test_a_chunked_job_that_goes_on_after_its_turn_needs_no_other_start(
    work: Work, session: AsyncSession
) -> None:
    async def count(_job: Ping, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        done = (chunk.cursor or 0) + 1
        return chunk.step(None if done == 3 else done, done=1)

    limited = ChunkedHandler(Ping, count, cursor=int, rate=Rate(1, HOUR), yield_after=timedelta(0))
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(limited) as worker:
        assert isinstance(await worker.outcome(job_id, count=3), Completed)


@pytest.mark.parametrize("batched", [False, True])
async def test_a_job_that_is_put_back_before_it_has_begun_needs_no_other_start(
    work: Work, session: AsyncSession, engine: AsyncEngine, effects: Effects, *, batched: bool
) -> None:
    """Else a lock that was held for a moment would cost it an hour."""

    async def many(_jobs: Sequence[Ping], session: AsyncSession) -> None:
        await leave_effects(session)

    rate = Rate(1, HOUR)
    limited = BatchHandler(Ping, many, rate=rate) if batched else calling(lambda: None, rate=rate)
    job_id = enqueue(session, Ping())
    await session.flush()
    await session.execute(
        text("""
        INSERT INTO worker.run (id, enqueued_ms, name, queue, status, from_outbox)
        SELECT id, enqueued_ms, name, queue, 'waiting', true FROM worker.outbox
        """)
    )
    await session.commit()
    async with work(limited) as worker:
        async with engine.begin() as holder:
            await holder.execute(text("SELECT FROM worker.run FOR UPDATE"))
            assert isinstance(await worker.outcome(job_id), Released)
        await are_done(effects, [job_id])


async def test_parked_jobs_outlive_the_worker_and_run_when_the_limit_is_gone(
    arq: ArqRedis, work: Work, burst: Burst, effects: Effects
) -> None:
    gate = Gate()
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(5))
    async with work(calling(gate, max_concurrent=1)) as worker:
        await gate.reached.wait()
        await are_parked(arq, 4)
        worker.signal()
        gate.opened.set()
        await worker.task
    assert len(await effects()) == 1
    await burst(PING)
    assert await effects() == sorted(ids)


@pytest.mark.parametrize("kind", ["queue", "name"])
async def test_a_paused_one_starts_nothing_what_runs_goes_on_and_resume_starts_at_once(
    arq: ArqRedis, work: Work, engine: AsyncEngine, effects: Effects, logged: Logged, kind: Kind
) -> None:
    """No poll is near: the change is notified."""
    name, gate = {"queue": QUEUE, "name": "ping"}[kind], Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), poll_delay=60, relay_poll=60) as worker:
        await gate.reached.wait()
        assert await pause(engine, kind, name)
        assert not await pause(engine, kind, name)
        await is_heard(logged)
        await Queue(arq).enqueue(Ping(), job_id="waiting")
        gate.opened.set()
        await worker.outcome("running")
        assert await effects() == ["running"]
        assert await resume(engine, kind, name)
        assert not await resume(engine, kind, name)
        await worker.outcome("waiting")
    assert await effects() == ["running", "waiting"]


async def test_a_pause_holds_through_a_wipe_of_redis(
    arq: ArqRedis, work: Work, engine: AsyncEngine, session: AsyncSession, effects: Effects
) -> None:
    assert await pause(engine, "name", "ping")
    ids = enqueue_all(session, [Ping(), Ping()])
    await session.commit()
    async with work(PING):
        await are_parked(arq, 2)
        await arq.flushall()
        await are_parked(arq, 2)
        assert await effects() == []
        assert await resume(engine, "name", "ping")
        await are_done(effects, ids)


async def test_a_burst_ends_though_jobs_are_held_back(
    arq: ArqRedis, burst: Burst, engine: AsyncEngine, session: AsyncSession, effects: Effects
) -> None:
    await pause(engine, "name", "ping")
    await pause(engine, "queue", "held")
    await Queue(arq, "held").enqueue(Ping())
    enqueue(session, Ping())
    await session.commit()
    await burst(PING, queues=("held", QUEUE))
    assert await effects() == []
    assert (await arq.zcard("held"), await arq.zcard(PARKED)) == (1, 1)
    await arq.flushall()
