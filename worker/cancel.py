"""Cancel a job that isn't final: one transaction in PostgreSQL, then the message in Redis.

An id may stand for several jobs, one after another; its newest is meant.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.faults import LOCK_NOT_AVAILABLE, sqlstate
from worker.ledger import Identity
from worker.operations import Done, UnknownIdError, WrongStatusError
from worker.overview import newest
from worker.parking import PARKED
from worker.wire import JOB_KEY, decode

REASON = "cancelled on request"
LOCK_WAIT_MS = 200
"""A run that is locked for longer is being worked on."""
RELAY_WAIT_MS = 10_000
"""Only the relay may hold an outbox row then, and it ends by itself."""
TRIES = 5
"""A waiting job may be sent, or begin, between the look and the lock."""


@dataclass(frozen=True, slots=True)
class Asked:
    """It is running; its worker was asked to abort it."""

    job_id: str
    name: str


class _ChangedMeanwhile(Exception):
    """It was sent, began, or ended between the look and the lock."""


@dataclass(frozen=True, slots=True)
class _Target:
    run: Identity
    message: bytes | None
    has_row: bool
    coalescing: bool = False
    """It waits unsent in the outbox, perhaps with others of its id that would be one run with it."""


# A row that isn't later than its id's last run is given the next millisecond, as the relay does.
_WAITING = text("""
select id, name, queue, message, coalesces and sent_epoch is null as coalescing,
    case when enqueued_ms = 0 or sent_epoch is not null or not coalesces then enqueued_ms else greatest(
        enqueued_ms, (select max(enqueued_ms) + 1 from worker.run where id = o.id)
    ) end as enqueued_ms
from worker.outbox as o
where id = :id and not exists (select from worker.run as r where r.id = o.id and r.enqueued_ms = o.enqueued_ms)
order by seq desc limit 1
""")
_UNFINISHED = text("""
select r.id, r.name, r.queue, r.enqueued_ms, r.from_outbox, (
    select o.message from worker.outbox as o where o.id = r.id and o.enqueued_ms = r.enqueued_ms order by seq limit 1
) as message
from worker.run as r where id = :id and finished_at is null order by created_at desc, enqueued_ms desc limit 1
""")
# Of the one that was just cancelled: an older job of the same id may still be at work.
_UNFINISHED_PARTS = text("""
select id from worker.run where parent_id = :id and finished_at is null and exists (
    select from worker.run as parent where parent.id = :id and parent.enqueued_ms = run.enqueued_ms
        and parent.status = 'cancelled'
) order by id
""")
_IS_KNOWN = text("select exists (select from worker.run where id = :id and enqueued_ms = :ms)")

_CANCEL = text("""
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, error, message, finished_at)
values (:id, :ms, :name, :queue, 'cancelled', :from_outbox, :reason, :message, clock_timestamp())
on conflict (id, enqueued_ms) do update set status = 'cancelled', next_at = null, error = excluded.error,
    message = excluded.message, finished_at = excluded.finished_at
where run.finished_at is null
returning status
""")
_TAKE_ROWS = text("""
delete from worker.outbox where id = :id and case when coalesces and sent_epoch is null then :coalescing
    else enqueued_ms = :ms end
""")
_LOCK_TIMEOUT = text("select set_config('lock_timeout', :ms, true)")

# The message of another job of this id, which came before or after, is left alone. What somebody works on is asked to
# abort, as arq's Job.abort() does; only what nobody holds is taken, with what was asked of it: the next job of a key
# has the same id.
TAKE_MESSAGE = (
    PARKED
    + """
local queue, id, message, running = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('GET', 'arq:job:' .. id) ~= message then return 0 end
if running == '1' or redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
    local time = redis.call('TIME')
    redis.call('ZADD', 'arq:abort', time[1] * 1000 + math.floor(time[2] / 1000), id)
    return 1
end
redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id)
redis.call('ZREM', queue, id)
redis.call('ZREM', 'arq:abort', id)
redis.call('ZREM', 'ratchet:leases:' .. queue, id)
local parking = parking_of(queue, id)
if parking then redis.call('ZREM', parking, id) end
return 2
"""
)

FIND_QUEUE = (
    PARKED
    + """
for _, queue in ipairs(KEYS) do
    if redis.call('ZSCORE', queue, ARGV[1]) or parking_of(queue, ARGV[1]) then return queue end
end
return false
"""
)


async def cancel(engine: AsyncEngine, redis: Redis, job_id: str, queues: Sequence[str]) -> Done | Asked:
    """End a job that isn't final, with its partitions; one that is being worked on is asked to abort.

    `queues`: where to look for a job that PostgreSQL doesn't know yet, since it went straight to Redis.
    Raises UnknownIdError or WrongStatusError.
    """
    ended = await _cancel_one(engine, redis, job_id, queues)
    async with engine.connect() as connection:
        parts = (await connection.execute(_UNFINISHED_PARTS, {"id": job_id})).scalars().all()
    for part in parts:
        with suppress(UnknownIdError, WrongStatusError):  # it has ended meanwhile, or finds its parent cancelled
            await _cancel_one(engine, redis, part, queues)
    return ended


async def _cancel_one(engine: AsyncEngine, redis: Redis, job_id: str, queues: Sequence[str]) -> Done | Asked:
    for _ in range(TRIES):
        target = await _target(engine, redis, job_id, queues)
        try:
            async with engine.begin() as connection:
                await _cancel(connection, target)
        except _ChangedMeanwhile:
            continue
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            if await _take_message(redis, target.run, running=True):
                return Asked(job_id, target.run.name)
            raise WrongStatusError(f"The job {job_id} is running, but Redis has no message of it; try again.") from None
        held = await _take_message(redis, target.run, running=False)
        return Asked(job_id, target.run.name) if held else Done(job_id, target.run.name)
    raise WrongStatusError(f"The job {job_id} changes faster than it can be cancelled; try again.")


async def _target(engine: AsyncEngine, redis: Redis, job_id: str, queues: Sequence[str]) -> _Target:
    async with engine.connect() as connection:
        row = (await connection.execute(_WAITING, {"id": job_id})).one_or_none()
        if row is not None:
            run = Identity(row.id, row.enqueued_ms, row.name, row.queue, from_outbox=True)
            return _Target(run, row.message, has_row=True, coalescing=row.coalescing)
        row = (await connection.execute(_UNFINISHED, {"id": job_id})).one_or_none()
        if row is not None:
            run = Identity(row.id, row.enqueued_ms, row.name, row.queue, row.from_outbox)
            return _Target(run, row.message, has_row=row.message is not None)
        target = await _in_redis(redis, job_id, queues)
        if target is not None and not (await connection.execute(_IS_KNOWN, target.run.key)).scalar_one():
            return target
        found = await newest(connection, job_id)
    if found is None:
        raise UnknownIdError(job_id)
    raise WrongStatusError(f"The job {job_id} is {found.status} already; only one that isn't final can be cancelled.")


async def _in_redis(redis: Redis, job_id: str, queues: Sequence[str]) -> _Target | None:
    """A direct job before its first attempt."""
    raw: bytes | None = await redis.get(JOB_KEY + job_id)
    if raw is None:
        return None
    message = decode(raw)
    script: Any = redis.register_script(FIND_QUEUE)
    queue: bytes | None = await script(keys=queues, args=[job_id])
    if queue is None:
        return None
    run = Identity(job_id, message.enqueued_ms, message.name, queue.decode(), message.from_outbox)
    return _Target(run, raw, has_row=False)


async def _cancel(connection: AsyncConnection, target: _Target) -> None:
    """The run comes first and the outbox after it, as in an attempt, so that the two never wait in a circle."""
    run = target.run
    await connection.execute(_LOCK_TIMEOUT, {"ms": str(LOCK_WAIT_MS)})
    row = {
        "name": run.name,
        "queue": run.queue,
        "from_outbox": run.from_outbox,
        "reason": REASON,
        "message": target.message,
    }
    if (await connection.execute(_CANCEL, {**run.key, **row})).one_or_none() is None:
        raise _ChangedMeanwhile
    await connection.execute(_LOCK_TIMEOUT, {"ms": str(RELAY_WAIT_MS)})
    taken = await connection.execute(_TAKE_ROWS, {**run.key, "coalescing": target.coalescing})
    if target.has_row and taken.rowcount == 0:
        raise _ChangedMeanwhile


async def _take_message(redis: Redis, run: Identity, *, running: bool) -> bool:
    """Take the run's message out of Redis, or ask its worker to abort it. True: somebody works on it."""
    raw: bytes | None = await redis.get(JOB_KEY + run.job_id)
    if raw is None or decode(raw).enqueued_ms != run.enqueued_ms:
        return False
    script: Any = redis.register_script(TAKE_MESSAGE)
    return bool(await script(keys=[run.queue], args=[run.job_id, raw, int(running)]) == 1)
