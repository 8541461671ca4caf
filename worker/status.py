"""How much waits, where, and who works on it: what PostgreSQL counts, and a bounded part of what lies in Redis."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from arq.constants import health_check_key_suffix
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.heartbeat import Heartbeat, live_workers
from worker.pauses import paused

LOOK_AT = 1_000
"""Jobs a queue, and ten times as many outbox rows, that are looked at for unknown names; the oldest."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue, as Redis and PostgreSQL have it. Ages are in seconds."""

    name: str
    waiting: int
    """In Redis and not in flight, due or not."""
    due: int
    oldest_due_s: float | None
    in_flight: int
    """Jobs that some worker holds; counted up to 2,000."""
    unsent: int
    """Outbox rows that the relay hasn't sent."""
    dead: int


@dataclass(frozen=True, slots=True)
class Status:
    """The whole picture."""

    queues: tuple[QueueStatus, ...]
    workers: tuple[Heartbeat, ...]
    unsent: int
    oldest_unsent_s: float | None
    """Of those that are due."""
    dead: int
    unknown_jobs: Mapping[str, int]
    """Names that the app has no handler for, and how many were seen of each; not all jobs are looked at."""
    unread_queues: tuple[str, ...] = ()
    """Where something waits that no worker which lives will take; empty while none lives at all."""
    paused_queues: tuple[str, ...] = ()
    paused_names: tuple[str, ...] = ()


# A claim moves the score to the end of the lease, so what is held lies between now and then; a job that a stock arq
# worker holds keeps its score and is due. What is parked is due too. Only the beginning of a message is read: it may
# have a megabyte. Nothing waits in a key that is no queue, though an outbox row may name it for one.
LOOK = """
local queue, lease, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
if type(redis.pcall('ZCARD', queue)) ~= 'number' then return {0, 0, false, 0, {}} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, limit)
local soon = redis.call('ZRANGEBYSCORE', queue, '(' .. now, now + lease, 'LIMIT', 0, limit)
local held, held_due, oldest, heads = 0, 0, false, {}
for _, id in ipairs(due) do
    if redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
        held_due = held_due + 1
    elseif not oldest then
        oldest = now - redis.call('ZSCORE', queue, id)
    end
    heads[#heads + 1] = redis.pcall('GETRANGE', 'arq:job:' .. id, 0, 511)
end
for _, id in ipairs(soon) do
    held = held + redis.call('EXISTS', 'arq:in-progress:' .. id)
    heads[#heads + 1] = redis.pcall('GETRANGE', 'arq:job:' .. id, 0, 511)
end
local parked = 0
for _, name in ipairs(redis.pcall('SMEMBERS', 'ratchet:parked:' .. queue)) do
    local parking = 'ratchet:parked:' .. queue .. '/' .. name
    local first = redis.pcall('ZRANGE', parking, 0, 0, 'WITHSCORES')
    if first[2] then
        oldest = math.max(oldest or 0, now - first[2])
        parked = parked + redis.call('ZCARD', parking)
    end
end
return {
    redis.call('ZCARD', queue) - held - held_due + parked,
    redis.call('ZCOUNT', queue, '-inf', now) - held_due + parked,
    oldest and tostring(oldest), held + held_due, heads
}
"""

HEAD = re.compile(rb'\s*\{\s*(?:"t"\s*:\s*(?:null|\d+)\s*,\s*)?"f"\s*:\s*"([A-Za-z0-9_.:-]{1,200})"')
"""The name, where the message begins as ours and arq's do."""

_UNSENT = text("""
select queue, count(*) as rows,
    extract(epoch from clock_timestamp() - min(due_at) filter (where due_at <= clock_timestamp()))::float as oldest_s
from worker.outbox where sent_epoch is null group by queue
""")
_DEAD = text(
    "select queue, count(*) as runs from worker.run where status = 'dead' and parent_id is null group by queue"
)
_OLDEST = text("""
select queue, name, count(*) as rows from (select queue, name from worker.outbox order by seq limit :limit) as o
group by queue, name
""")


async def status(
    engine: AsyncEngine, redis: Redis, *, queues: Iterable[str], known: Container[str], lease: timedelta
) -> Status:
    """Look at both servers. `known`: the names with a handler.

    `queues` are shown, those that workers read, and those of dead jobs and of the outbox; of the latter's rows that are
    sent the oldest are looked at.
    """
    async with engine.connect() as connection:
        unsent = {row.queue: row for row in await connection.execute(_UNSENT)}
        dead = {row.queue: int(row.runs) for row in await connection.execute(_DEAD)}
        oldest = (await connection.execute(_OLDEST, {"limit": 10 * LOOK_AT})).all()
    held_back = await paused(engine)
    workers = await live_workers(redis)
    names: Counter[str] = Counter()
    for row in oldest:
        names[row.name] += int(row.rows)
    in_outbox = {str(row.queue) for row in oldest}
    shown = {*queues, *unsent, *in_outbox, *dead, *(queue for worker in workers for queue in worker.queues)}
    look: Any = redis.register_script(LOOK)
    found: list[QueueStatus] = []
    in_redis: Counter[str] = Counter()
    for queue in sorted(shown):
        waiting, due, oldest_ms, held, heads = await look(
            keys=[queue], args=[int(lease.total_seconds() * 1000), LOOK_AT]
        )
        oldest_s = float(oldest_ms) / 1000 if oldest_ms else None
        rows = int(unsent[queue].rows) if queue in unsent else 0
        found.append(QueueStatus(queue, waiting, due, oldest_s, held, rows, dead.get(queue, 0)))
        in_redis.update(match[1].decode() for match in map(HEAD.match, heads) if match)
    # What came through the outbox stands in both, until it is final.
    seen = sorted((names | in_redis).items())
    return Status(
        queues=tuple(found),
        workers=tuple(workers),
        unsent=sum(queue.unsent for queue in found),
        oldest_unsent_s=max((row.oldest_s for row in unsent.values() if row.oldest_s is not None), default=None),
        dead=sum(dead.values()),
        unknown_jobs={name: count for name, count in seen if name not in known},
        unread_queues=await _unread(redis, found, workers),
        paused_queues=tuple(sorted(held_back.queues)),
        paused_names=tuple(sorted(held_back.names)),
    )


async def _unread(redis: Redis, queues: Iterable[QueueStatus], workers: Sequence[Heartbeat]) -> tuple[str, ...]:
    read = {queue for worker in workers for queue in worker.queues}
    some = [each.name for each in queues if workers and each.waiting + each.unsent and each.name not in read]
    # A stock arq worker says no more than that.
    by_arq = [await redis.exists(queue + health_check_key_suffix) for queue in some]
    return tuple(queue for queue, is_read in zip(some, by_arq, strict=True) if not is_read)
