"""Queue: jobs straight to Redis, without a transaction.

Applied at most once; lost if Redis loses them before their first attempt has ended.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from redis.asyncio import Redis
from uuid_utils import uuid7

from worker import scripts
from worker.job import DEFAULT_QUEUE, Job
from worker.outbox import checked_at, checked_job, checked_job_id, checked_queue
from worker.reporting.trace import outgoing_headers
from worker.wake import WAKE
from worker.wire import Message, encode

BATCH, BATCH_BYTES = 500, 8 * 1024 * 1024
"""Messages a script call, so that a large one doesn't hold Redis up."""

# As arq's enqueue_job: an id that waits, runs, or has a result is left alone; only a chosen one can. An
# abort of an earlier job of that id isn't meant for this one. The messages carry no TTL.
ENQUEUE = (
    WAKE
    + """
local queue, chosen, at, delay = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if chosen == '1' then
    if redis.call('EXISTS', 'arq:job:' .. ARGV[4], 'arq:result:' .. ARGV[4]) > 0 then return 0 end
    redis.pcall('ZREM', 'arq:abort', ARGV[4])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = at > 0 and at or now + delay
local scored, messages = {}, {}
for i = 4, #ARGV, 2 do
    scored[#scored + 1], scored[#scored + 2] = due, ARGV[i]
    messages[#messages + 1], messages[#messages + 2] = 'arq:job:' .. ARGV[i], ARGV[i + 1]
end
redis.call('ZADD', queue, unpack(scored))
redis.call('MSET', unpack(messages))
if due <= now then wake(queue) end
return 1
"""
)

_ENQUEUE = scripts.Script(ENQUEUE)


class Queue:
    """A queue in Redis. `redis` is any asyncio client, arq's among them.

    A job whose class names a queue goes there, unless this one has a name of its own.
    """

    def __init__(self, redis: Redis, name: str = DEFAULT_QUEUE) -> None:
        """Raises ValueError for a name that is no queue's."""
        self._redis = redis
        self._name = checked_queue(name)

    async def enqueue(
        self, job: Job, *, job_id: str | None = None, delay: timedelta | None = None, at: datetime | None = None
    ) -> str | None:
        """Send `job` and return its id; None where that id is queued already or has a result, as in arq.

        A chosen `job_id` is deduplicated only while its message or its result (WORKER_KEEP_RESULT) is in Redis; that of
        `worker.outbox.enqueue` for as long as the run is kept.

        Raises ValueError for both delay and at, a naive `at`, a `job_id` that can't be one, and what `Job.to_payload`
        refuses, as a payload over 1 MiB; redis's errors where it is away.
        """
        checked_job(job)
        at = checked_at(delay, at)
        chosen = str(uuid7()) if job_id is None else checked_job_id(job_id)
        at_ms = int(at.timestamp() * 1000) if at else 0
        delay_ms = int(delay.total_seconds() * 1000) if delay else 0
        args = [int(job_id is not None), at_ms, delay_ms, chosen, _message(job)]
        added = await scripts.run(self._redis, scripts.Call(_ENQUEUE, [self._queue_of(job)], args))
        return chosen if added else None

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        """Send many jobs in few round trips; returns their ids in order. If Redis fails in between, some are sent."""
        ids: list[str] = []
        batches = defaultdict[str, _Batch](_Batch)
        for job in jobs:
            checked_job(job)
            ids.append(str(uuid7()))
            queue, message = self._queue_of(job), _message(job)
            batch = batches[queue]
            batch.pairs += ids[-1], message
            batch.bytes += len(message)
            if len(batch.pairs) >= 2 * BATCH or batch.bytes >= BATCH_BYTES:
                await self._send(queue, batches.pop(queue))
        for queue, batch in batches.items():
            await self._send(queue, batch)
        return ids

    async def _send(self, queue: str, batch: "_Batch") -> None:
        await scripts.run(self._redis, scripts.Call(_ENQUEUE, [queue], [0, 0, 0, *batch.pairs]))

    def _queue_of(self, job: Job) -> str:
        return job.job_queue if self._name == DEFAULT_QUEUE else self._name


@dataclass(slots=True)
class _Batch:
    """What is sent to one queue in one call."""

    pairs: list[Any] = field(default_factory=list[Any])
    """Ids and messages in turn."""
    bytes: int = 0


def _message(job: Job) -> bytes:
    enqueued_ms = time.time_ns() // 1_000_000
    return encode(Message(job.job_name, job.to_payload(), enqueued_ms, headers=outgoing_headers()))
