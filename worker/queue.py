"""Queue: jobs straight to Redis, without a transaction. Applied at most once; lost if Redis loses them before their first attempt ends."""

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from redis.asyncio import Redis
from uuid_utils import uuid7

from worker.job import DEFAULT_QUEUE, Job
from worker.outbox import checked_job_id, checked_queue
from worker.reporting.trace import outgoing_headers
from worker.wire import Message, encode

BATCH = 500
"""Messages a script call, so that a large one doesn't hold Redis up."""

# As arq's enqueue_job: an id that waits, runs, or has a result is left alone. The messages carry no TTL.
ENQUEUE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local added = {}
for i = 1, #ARGV, 4 do
    local id, at, delay, message = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
    if redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id) > 0 then
        added[#added + 1] = 0
    else
        redis.call('SET', 'arq:job:' .. id, message)
        redis.call('ZADD', KEYS[1], at > 0 and at or now + delay, id)
        added[#added + 1] = 1
    end
end
return added
"""


class Queue:
    """A queue in Redis. `redis` is any asyncio client, arq's among them."""

    def __init__(self, redis: Redis, name: str = DEFAULT_QUEUE) -> None:
        """Raises ValueError for a name that is no queue's."""
        self._enqueue: Any = redis.register_script(ENQUEUE)
        self._name = checked_queue(name)

    async def enqueue(
        self, job: Job, *, job_id: str | None = None, delay: timedelta | None = None, at: datetime | None = None
    ) -> str | None:
        """Send `job` and return its id; None where that id is queued already or has a result, as in arq.

        Raises ValueError for both delay and at, a naive `at`, or a payload over 1 MiB; redis's errors where it is away.
        """
        if delay is not None and at is not None:
            raise ValueError("enqueue got both delay and at; give one of them.")
        if at is not None and at.tzinfo is None:
            raise ValueError(f"enqueue got at={at}, which has no time zone; give an aware time.")
        chosen = checked_job_id(job_id) if job_id is not None else str(uuid7())
        at_ms = int(at.timestamp() * 1000) if at else 0
        delay_ms = int(delay.total_seconds() * 1000) if delay else 0
        added = await self._enqueue(keys=[self._name], args=[chosen, at_ms, delay_ms, _message(job)])
        return chosen if added[0] else None

    async def enqueue_many(self, jobs: Iterable[Job]) -> list[str]:
        """Send many jobs in few round trips and return their ids in order. Should Redis fail in between, some are sent."""
        ids: list[str] = []
        arguments: list[Any] = []
        for job in jobs:
            ids.append(str(uuid7()))
            arguments += [ids[-1], 0, 0, _message(job)]
            if len(arguments) >= 4 * BATCH:
                await self._enqueue(keys=[self._name], args=arguments)
                arguments = []
        if arguments:
            await self._enqueue(keys=[self._name], args=arguments)
        return ids


def _message(job: Job) -> bytes:
    enqueued_ms = time.time_ns() // 1_000_000
    return encode(Message(job.job_name, job.to_payload(), enqueued_ms, headers=outgoing_headers()))
