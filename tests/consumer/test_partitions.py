"""A job in partitions, on workers that are killed, beside a Redis that is wiped, and cancelled as a whole."""

import asyncio
from functools import partial

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.conftest import StartWorker
from tests.consumer import app as kit
from tests.consumer.app import Spread
from tests.consumer.conftest import Effects, Work
from tests.support.locks import locked
from tests.support.waiting import wait_until
from worker.cancel import cancel
from worker.handler import ChunkedHandler
from worker.operations import Done
from worker.outbox import enqueue
from worker.outcome import Cancelled

ENV = {
    "WORKER_APP": "tests.consumer.app:app",
    "WORKER_LEASE": "1",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_POLL_DELAY": "0.02",
    "WORKER_SWEEP_INTERVAL": "1",
}
LOCK = 11
FIRST_CHUNKS = sorted(str(number) for lower in (0, 10, 20, 30) for number in range(lower + 1, lower + 5))


@pytest.mark.parametrize("wiped", [False, True])
async def test_each_row_is_worked_on_once_though_the_worker_is_killed_in_the_middle(
    session: AsyncSession,
    engine: AsyncEngine,
    arq: ArqRedis,
    start_worker: StartWorker,
    effects: Effects,
    *,
    wiped: bool,
) -> None:
    async with locked(engine, LOCK):
        job_id = await enqueued(session)
        worker = await start_worker(**ENV)
        await worker.wait_for("began", count=4)
        assert await effects() == FIRST_CHUNKS
        await worker.kill()
        if wiped:
            await arq.flushall()
    await start_worker(**ENV)
    await wait_until(partial(has_ended, engine, job_id), timeout=30)
    assert await effects() == sorted(str(number) for number in range(1, 41))
    async with engine.connect() as connection:
        runs = (await connection.execute(text("select status, done, result from worker.run order by length(id)"))).all()
        assert tuple(runs[0]) == ("completed", 40, {"numbers": 40, "sum": 820})
        assert [tuple(run[:2]) for run in runs[1:]] == [("completed", 10)] * 4
        assert (await connection.execute(text("select count(*) from worker.outbox"))).scalar_one() == 0


async def test_a_parent_whose_process_died_is_no_suspect_once_it_was_seen_to_wait(
    work: Work, session: AsyncSession, engine: AsyncEngine, arq: ArqRedis, effects: Effects
) -> None:
    handler = ChunkedHandler(Spread, kit.spread, cursor=int, size=4, target=None, partitions=4, split=kit.tens)
    async with locked(engine, LOCK), work(handler, concurrency=5):
        job_id = await enqueued(session)
        await wait_until(partial(all_wait, engine))
        for queue in "ratchet:leases:arq:queue", "arq:queue":
            await arq.zadd(queue, {job_id: 1})

        async def is_cleared() -> bool:
            return await arq.zscore("ratchet:leases:arq:queue", job_id) is None

        await wait_until(is_cleared)


async def test_a_cancel_of_the_whole_ends_its_partitions_and_keeps_what_they_committed(
    work: Work, session: AsyncSession, engine: AsyncEngine, arq: ArqRedis, effects: Effects
) -> None:
    handler = ChunkedHandler(Spread, kit.spread, cursor=int, size=4, target=None, partitions=4, split=kit.tens)
    async with locked(engine, LOCK), work(handler) as worker:
        job_id = await enqueued(session)
        parts = [f"{job_id}:{number}" for number in (1, 2, 3, 4)]
        await wait_until(partial(all_wait, engine))
        assert await cancel(engine, arq, job_id, ["arq:queue"]) == Done(job_id, "spread")
        ended = await asyncio.gather(*(worker.outcome(part) for part in parts))
        assert ended == [Cancelled("aborted")] * 4
    assert await effects() == FIRST_CHUNKS
    async with engine.connect() as connection:
        statuses = (await connection.execute(text("select status, done from worker.run order by length(id)"))).all()
        assert [tuple(row) for row in statuses] == [("cancelled", 0)] + [("cancelled", 4)] * 4
        assert (await connection.execute(text("select count(*) from worker.outbox"))).scalar_one() == 0
    assert await arq.zcard("arq:queue") == 0


async def enqueued(session: AsyncSession) -> str:
    job_id = enqueue(session, Spread(lock=LOCK))
    await session.commit()
    return job_id


async def has_ended(engine: AsyncEngine, job_id: str) -> bool:
    query = text("select count(*) from worker.run where id = :id and finished_at is not null")
    async with engine.connect() as connection:
        count: int = (await connection.execute(query, {"id": job_id})).scalar_one()
        return count == 1


async def all_wait(engine: AsyncEngine) -> bool:
    """Whether all four partitions wait for the lock, in their second chunk."""
    query = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
    async with engine.connect() as connection:
        count: int = (await connection.execute(query)).scalar_one()
        return count == 4
