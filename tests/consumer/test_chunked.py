"""Chunked jobs of a running worker: they share their queue; a pause or a cancel reaches them between chunks."""

import asyncio
from datetime import timedelta
from functools import partial

from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Effects, Work
from tests.consumer.jobs import Ping, Pong, leave_effect
from tests.support.waiting import wait_until
from worker import pauses
from worker.cancel import Asked, cancel
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler, Handler
from worker.outbox import enqueue
from worker.outcome import BUSY, Cancelled, Completed, Yielded


class Steps:
    """A chunked handler that stops in each chunk until the test lets it go on."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.begun = asyncio.Queue[int]()
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, _job: Ping, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        await leave_effect(session)
        self.begun.put_nowait(at)
        await self.go_on.acquire()
        return chunk.step(at if at < self.chunks else None, done=1, counts={"rows": 1})

    async def reached(self, chunk: int) -> None:
        async with asyncio.timeout(20):
            while await self.begun.get() != chunk:
                pass


async def test_other_due_jobs_have_their_turn_before_a_long_one_goes_on(work: Work, session: AsyncSession) -> None:
    """With one slot: the long job is the oldest, and yet its second chunk comes behind what came during its first."""
    order: list[str] = []
    steps = Steps(2)

    async def long(job: Ping, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        step = await steps(job, session, chunk)
        order.append("chunk")
        return step

    async def short(_job: Pong, _session: AsyncSession) -> None:
        order.append("job")

    long_id = enqueue(session, Ping())
    await session.commit()
    handlers = ChunkedHandler(Ping, long, cursor=int, yield_after=timedelta(0)), Handler(Pong, short)
    async with work(*handlers, concurrency=1) as worker:
        await steps.reached(1)
        ids = [enqueue(session, Pong()) for _ in range(2)]
        await session.commit()
        await wait_until(partial(all_sent, session))
        for _ in range(2):
            steps.go_on.release()
        assert await worker.outcome(long_id, 2) == Completed({"rows": 2})
        assert [await worker.outcome(job_id) for job_id in ids] == [Completed()] * 2
    assert worker.of(long_id)[0] == Yielded(timedelta(0), "others have their turn")
    assert order == ["chunk", "job", "job", "chunk"]


async def all_sent(session: AsyncSession) -> bool:
    unsent: int = (await session.execute(text("select count(*) from worker.outbox where sent_at is null"))).scalar_one()
    await session.rollback()
    return unsent == 0


async def test_a_paused_name_is_held_after_the_chunk_that_runs(
    work: Work, session: AsyncSession, engine: AsyncEngine, effects: Effects
) -> None:
    steps = Steps(3)
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(ChunkedHandler(Ping, steps, cursor=int)) as worker:
        await steps.reached(1)
        await pauses.pause(engine, "name", "ping")
        steps.go_on.release()
        assert await worker.outcome(job_id) == Yielded(
            BUSY, "ping or the queue arq:queue is paused", has_committed=False
        )
        assert await effects() == [job_id]
        for _ in range(2):
            steps.go_on.release()
        await pauses.resume(engine, "name", "ping")
        assert await worker.outcome(job_id, 2) == Completed({"rows": 3})
    assert await effects() == [job_id] * 3


async def test_a_cancelled_job_keeps_what_it_committed_and_does_no_more(
    work: Work, session: AsyncSession, engine: AsyncEngine, arq: ArqRedis, effects: Effects
) -> None:
    steps = Steps(5)
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(ChunkedHandler(Ping, steps, cursor=int)) as worker:
        steps.go_on.release()
        await steps.reached(2)
        assert await cancel(engine, arq, job_id, ["arq:queue"]) == Asked(job_id, "ping")
        assert await worker.outcome(job_id) == Cancelled("aborted")
    assert await effects() == [job_id]
    async with engine.connect() as connection:
        run = (await connection.execute(text("select status, done, cursor from worker.run"))).one()
        assert tuple(run) == ("cancelled", 1, 1)
        assert (await connection.execute(text("select count(*) from worker.outbox"))).scalar_one() == 0
