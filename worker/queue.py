"""Queue: jobs straight to Redis, without a transaction.

Applied at most once; lost if Redis loses them before their first attempt has ended.
"""

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from redis.asyncio import Redis
from uuid_utils import uuid7

from worker.job import DEFAULT_QUEUE, Job
from worker.outbox import checked_at, checked_job_id, checked_queue
from worker.reporting.trace import outgoing_headers
from worker.wire import Message, encode

BATCH, BATCH_BYTES = 500, 8 * 1024 * 1024
"""Messages a script call, so that a large one doesn't hold Redis up."""

# As arq's enqueue_job: an id that waits, runs, or has a result is left alone. The messages carry no TTL.
ENQUEUE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added = {}
for i = 1, #ARGV, 5 do
    local queue, id, message = ARGV[i], ARGV[i + 1], ARGV[i + 4]
    local at, delay = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    if redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id) > 0 then
        added[#added + 1] = 0
    else
        redis.call('ZADD', queue, at > 0 and at or now + delay, id)
        redis.call('SET', 'arq:job:' .. id, message)
        added[#added + 1] = 1
    end
end
return added
"""


class Queue:
    """A queue in Redis. `redis` is any asyncio client, arq's among them.

    A job whose class names a queue goes there, unless this one has a name of its own.
    """

    def __init__(self, redis: Redis, name: str = DEFAULT_QUEUE) -> None:
        """Raises ValueError for a name that is no queue's."""
        self._enqueue: Any = redis.register_script(ENQUEUE)
        self._name = checked_queue(name)

    async def enqueue(
        self, job: Job, *, job_id: str | None = None, delay: timedelta | None = None, at: datetime | None = None
    ) -> str | None:
        """Send `job` and return its id; None where that id is queued already or has a result, as in arq.

        A chosen `job_id` is deduplicated only while its message or its result (WORKER_KEEP_RESULT) is in Redis; that of
        `worker.outbox.enqueue` for as long as the run is kept.

        Raises ValueError for both delay and at, a naive `at`, or a payload over 1 MiB; redis's errors where it is away.
        """
        at = checked_at(delay, at)
        chosen = str(uuid7()) if job_id is None else checked_job_id(job_id)
        added = await self._enqueue(keys=[], args=self._arguments(job, chosen, delay, at))
        return chosen if added[0] else None

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        """Send many jobs in few round trips; returns their ids in order. If Redis fails in between, some are sent."""
        ids: list[str] = []
        batch: list[list[Any]] = []
        for job in jobs:
            ids.append(str(uuid7()))
            batch.append(self._arguments(job, ids[-1]))
            if len(batch) >= BATCH or sum(len(arguments[-1]) for arguments in batch) >= BATCH_BYTES:
                await self._send(batch)
                batch = []
        await self._send(batch)
        return ids

    async def _send(self, batch: list[list[Any]]) -> None:
        if batch:
            await self._enqueue(keys=[], args=[part for arguments in batch for part in arguments])

    def _arguments(
        self, job: Job, job_id: str, delay: timedelta | None = None, at: datetime | None = None
    ) -> list[Any]:
        """What ENQUEUE takes of one job; the message comes last."""
        enqueued_ms = time.time_ns() // 1_000_000
        return [
            job.job_queue if self._name == DEFAULT_QUEUE else self._name,
            job_id,
            int(at.timestamp() * 1000) if at else 0,
            int(delay.total_seconds() * 1000) if delay else 0,
            encode(Message(job.job_name, job.to_payload(), enqueued_ms, headers=outgoing_headers())),
        ]
