"""Batches in a real worker: jobs gather beyond the slots there are, and a worker that ends leaves none half done."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from arq.connections import ArqRedis
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.conftest import StartWorker
from tests.consumer.app import Together
from tests.consumer.conftest import Effects, Work
from tests.consumer.jobs import Gate, Ping, leave_effects
from tests.consumer.test_kills import ENV, LOCK
from tests.support.waiting import wait_until
from worker.handler import BatchHandler
from worker.models import Outbox
from worker.outbox import enqueue_many
from worker.outcome import Completed, Released
from worker.queue import Queue

LONG = timedelta(seconds=10)


async def answer(jobs: Sequence[Ping], session: AsyncSession) -> list[int]:
    await leave_effects(session)
    return [job.n for job in jobs]


async def enqueued(session: AsyncSession, jobs: Sequence[Any]) -> list[str]:
    ids = enqueue_many(session, jobs)
    await session.commit()
    return ids


async def outbox_is_empty(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(Outbox)) == 0


async def test_one_slot_is_enough_for_a_whole_batch_and_holds_one_batch_at_a_time(
    session: AsyncSession, work: Work, effects: Effects
) -> None:
    sizes: list[int] = []
    running = 0

    async def alone(jobs: Sequence[Ping], session: AsyncSession) -> list[int]:
        nonlocal running
        running += 1
        assert running == 1
        sizes.append(len(jobs))
        results = await answer(jobs, session)
        running -= 1
        return results

    ids = await enqueued(session, [Ping(n=n) for n in range(12)])
    async with work(BatchHandler(Ping, alone, max_size=3, linger=LONG), concurrency=1) as worker:
        for n, job_id in enumerate(ids):
            assert await worker.outcome(job_id) == Completed(n)
    assert sizes == [3, 3, 3, 3]
    assert await effects() == sorted(ids)
    assert worker.faults == []


async def test_direct_jobs_gather_too_and_each_has_its_own_result(arq: ArqRedis, work: Work) -> None:
    async with work(BatchHandler(Ping, answer, max_size=5, linger=LONG)) as worker:
        ids = [await Queue(arq).enqueue(Ping(n=n), job_id=f"ping-{n}") for n in range(5)]
        for n, job_id in enumerate(ids):
            assert await worker.outcome(str(job_id)) == Completed(n)

        async def are_settled() -> bool:
            return not await arq.exists("arq:queue")

        await wait_until(are_settled)
    assert await arq.keys("arq:in-progress:*") == []
    assert len(await arq.keys("arq:result:*")) == 5


async def test_a_batch_that_does_not_end_within_the_grace_is_rolled_back_and_done_by_another_worker(
    session: AsyncSession, work: Work, engine: AsyncEngine, effects: Effects
) -> None:
    gate = Gate()

    async def slow(jobs: Sequence[Ping], session: AsyncSession) -> None:
        await leave_effects(session)
        await gate()

    ids = await enqueued(session, [Ping(n=n) for n in range(6)])
    async with work(BatchHandler(Ping, slow, max_size=6, linger=LONG), shutdown_grace=0.2) as worker:
        await gate.reached.wait()
        await worker.stop()
    assert sorted(worker.outcomes) == sorted((job_id, Released("the worker stops")) for job_id in ids)
    assert await effects() == []
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM worker.run"))).scalar_one() == 0
    async with work(BatchHandler(Ping, answer, max_size=6, linger=LONG)) as another:
        for n, job_id in enumerate(ids):
            assert await another.outcome(job_id) == Completed(n)
    assert await effects() == sorted(ids)


async def test_a_batch_that_ends_within_the_grace_is_settled(session: AsyncSession, work: Work) -> None:
    gate = Gate()

    async def slow(jobs: Sequence[Ping], session: AsyncSession) -> None:
        await gate()

    ids = await enqueued(session, [Ping(n=n) for n in range(6)])
    async with work(BatchHandler(Ping, slow, max_size=6, linger=LONG)) as worker:
        await gate.reached.wait()
        worker.signal()
        await asyncio.sleep(0)
        gate.opened.set()
        await worker.task
    assert sorted(worker.outcomes) == sorted((job_id, Completed()) for job_id in ids)


async def test_a_worker_killed_in_the_middle_of_a_batch_leaves_nothing_of_it_and_another_does_it_all(
    session: AsyncSession, engine: AsyncEngine, start_worker: StartWorker, effects: Effects
) -> None:
    ids = await enqueued(session, [Together(lock=LOCK) for _ in range(20)])
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        first = await start_worker(**ENV)
        await first.wait_for("began", jobs=20)
        await first.kill()
    assert await effects() == []
    second = await start_worker(**ENV)
    await wait_until(lambda: outbox_is_empty(engine), timeout=30)
    assert await effects() == sorted(ids)
    assert await second.stop() == 0
