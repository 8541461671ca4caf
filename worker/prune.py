"""worker.prune: old runs go, in chunks. Dead ones stay until they are replayed or discarded: nothing is deleted that
could not be run.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Annotated, NamedTuple

from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.broker import connect_broker
from worker.chunk import Chunk, Step
from worker.handler import AnyHandler, ChunkedHandler
from worker.job import Job
from worker.settings import DEFAULT_REDIS_URL
from worker.wire import JOB_KEY, decode


class RunKey(NamedTuple):
    """What names a run."""

    job_id: str
    enqueued_ms: int


StillDelivered = Callable[[Sequence[RunKey]], Awaitable[set[RunKey]]]
"""Of some runs, those whose very message still lies in Redis."""


class Prune(Job, name="worker.prune"):
    """Delete runs that ended longer ago than this, with attempts and rejects, and old cron ticks. Result: pruned."""

    keep_for: Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(days=3_650))] = timedelta(days=30)


# Partitions go with the job that they are of. One whose `job_id` was enqueued again stays until that is known for a
# duplicate.
# Asked of each run of the page alone, and counted: a join would go through both indexes from their start for each page.
_OLD = text("""
select id, enqueued_ms, from_outbox, (
    select count(*) from worker.run as part
    where part.parent_id = run.id and part.enqueued_ms = run.enqueued_ms and part.finished_at is null
) + (
    select count(*) from worker.outbox as row where row.id = run.id and row.enqueued_ms = run.enqueued_ms
) > 0 as stays
from worker.run
where status in ('completed', 'cancelled', 'discarded') and finished_at < now() - cast(:keep_for as interval)
    and (id, enqueued_ms) > (:id, :ms) and parent_id is null
order by id, enqueued_ms limit :size
""")
_DELETE = text("""
with old as (
    select * from unnest(cast(:ids as text[]), cast(:times as bigint[])) as given (id, enqueued_ms)
), partitions as (
    delete from worker.run using old where run.parent_id = old.id and run.enqueued_ms = old.enqueued_ms
)
delete from worker.run using old where run.id = old.id and run.enqueued_ms = old.enqueued_ms
""")
# Each entry's last tick stays: without it the next look would take the entry for a new one, and pass its past over.
_DELETE_TICKS = text("""
delete from worker.cron_tick as tick where scheduled_at < now() - cast(:keep_for as interval)
    and exists (
        select from worker.cron_tick as later where later.name = tick.name and later.scheduled_at > tick.scheduled_at
    )
""")
FIRST = RunKey("", -(2**63))


async def prune(
    job: Prune, session: AsyncSession, chunk: Chunk[RunKey], *, still_delivered: StillDelivered
) -> Step[RunKey]:
    """Delete the next old runs in the order of their key.

    A direct run whose message still lies in Redis stays: without it that message would be run again. A message from
    the outbox needs no question: with neither a run nor a row it is a duplicate.
    """
    if chunk.cursor is None:
        await session.execute(_DELETE_TICKS, {"keep_for": job.keep_for})
    after = chunk.cursor or FIRST
    page = {"keep_for": job.keep_for, "id": after.job_id, "ms": after.enqueued_ms, "size": chunk.size}
    old = (await session.execute(_OLD, page)).all()
    direct = [RunKey(row.id, row.enqueued_ms) for row in old if not row.from_outbox and not row.stays]
    kept = await still_delivered(direct) if direct else set[RunKey]()
    keys = [RunKey(row.id, row.enqueued_ms) for row in old]
    gone = [key for key, row in zip(keys, old, strict=True) if not row.stays and key not in kept]
    await session.execute(_DELETE, {"ids": [key.job_id for key in gone], "times": [key.enqueued_ms for key in gone]})
    return chunk.step(None if len(old) < chunk.size else keys[-1], done=len(old), counts={"pruned": len(gone)})


async def delivered_in(redis_url: Callable[[], str], runs: Sequence[RunKey]) -> set[RunKey]:
    """Ask Redis, on a connection of its own. A message with another enqueue time is another job's.

    Few are there, and one may have 1 MiB: those that are come one after another.
    """
    delivered: set[RunKey] = set()
    async with connect_broker(redis_url()) as redis:
        async with redis.pipeline(transaction=False) as pipe:
            for run in runs:
                pipe.type(JOB_KEY + run.job_id)
            types: list[bytes] = await pipe.execute()
        for run in (run for run, kind in zip(runs, types, strict=True) if kind == b"string"):
            raw: bytes | None = await redis.get(JOB_KEY + run.job_id)
            if raw and decode(raw).enqueued_ms == run.enqueued_ms:
                delivered.add(run)
    return delivered


def of_environment() -> str:
    """REDIS_URL, as a worker's settings read it."""
    return os.environ.get("REDIS_URL") or DEFAULT_REDIS_URL


def handlers(redis_url: Callable[[], str] = of_environment) -> tuple[AnyHandler, ...]:
    """For an application's table. `redis_url` is asked when it is needed."""
    still_delivered = partial(delivered_in, redis_url)
    return (ChunkedHandler(Prune, partial(prune, still_delivered=still_delivered), cursor=RunKey),)
