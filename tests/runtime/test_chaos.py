"""Two workers, deliveries that come twice, attempts that are cancelled, connections that are ended at random."""

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, Note, effect
from worker.chunk import Chunk, Step
from worker.delivery import Delivery
from worker.errors import Snooze
from worker.handler import ChunkedHandler, Handler, Isolation
from worker.outcome import Completed, Duplicate
from worker.retry import RetryPolicy

NOTES, COUNTS, CHUNKS = 30, 6, 8
FOR_EVER = RetryPolicy(attempts=1_000_000, base=timedelta(0))


async def noting(job: Note, session: AsyncSession) -> str:
    await effect(session, job.text)
    match random.random():
        case luck if luck < 0.1:
            raise ValueError
        case luck if luck < 0.2:
            raise Snooze(timedelta(0))
        case _:
            return job.text


async def counting(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    at = (chunk.cursor or 0) + 1
    await effect(session, f"{job.upto}: {at}")
    if random.random() < 0.1:
        raise ValueError
    return chunk.step(at if at < CHUNKS else None, counts={"n": 1})


async def settle(sides: tuple[Bench, Bench], delivery: Delivery, isolation: Isolation) -> Delivery | None:
    """Deliver it once, to either side, and perhaps cancel that. Returns what is left to deliver."""
    handlers = (
        Handler(Note, noting, retry=FOR_EVER, isolation=isolation),
        ChunkedHandler(Count, counting, cursor=int, retry=FOR_EVER, isolation=isolation),
    )
    attempt = asyncio.create_task(random.choice(sides).executor(*handlers).execute(delivery))
    if random.random() < 0.1:
        await asyncio.wait([attempt], timeout=random.random() / 50)
        attempt.cancel()
    report = await attempt
    if isinstance(report.outcome, Completed | Duplicate):
        return None
    return replace(delivery, message=report.adopted) if report.adopted and random.random() < 0.5 else delivery


async def end_backends(bench: Bench) -> None:
    while True:
        await asyncio.sleep(0.05)
        with suppress(DBAPIError):  # it ends its own connection, too
            await bench.all(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid() order by random() limit 2"
            )


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"])
async def test_each_job_and_each_chunk_is_applied_exactly_once(
    bench: Bench, other: Bench, isolation: Isolation
) -> None:
    jobs = [*(Note(text=f"note {at}") for at in range(2 * NOTES)), *(Count(upto=at) for at in range(2 * COUNTS))]
    left = {at: await bench.enqueued(job) if at % 2 else bench.direct(job) for at, job in enumerate(jobs)}
    chaos = asyncio.create_task(end_backends(bench))
    async with asyncio.timeout(60):
        while left:
            batch = random.choices(list(left), k=12)  # some of them twice
            after = await asyncio.gather(*(settle((bench, other), left[at], isolation) for at in batch))
            for at, delivery in zip(batch, after, strict=True):
                if delivery is None:
                    left.pop(at, None)
                elif at in left:
                    left[at] = delivery
    chaos.cancel()
    await asyncio.wait([chaos])
    await bench.engine.dispose()  # what died in the pool
    assert await bench.all("select note from effect group by note having count(*) > 1") == []
    assert len(await bench.effects()) == 2 * NOTES + 2 * COUNTS * CHUNKS
    assert {status for status, _ in await bench.runs()} == {"completed"}
    assert len(await bench.runs()) == len(jobs)
    assert await bench.rows() == 0
    assert bench.told.faults + other.told.faults == []
