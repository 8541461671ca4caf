"""arq's cron jobs: each tick is enqueued once over all workers, however late one of them comes.

arq knows a tick by the id of its job, and a cron job leaves neither message nor result. So a worker that was cut off
from Redis for a while, which ends arq's own and not ours, would enqueue a tick again that others have run long since.
"""

import time
from datetime import datetime, timedelta
from uuid import uuid4

import arq.worker
from arq.cron import CronJob
from arq.jobs import serialize_job
from arq.utils import to_unix_ms

from worker import scripts
from worker.wake import WAKE

REMEMBERED = timedelta(days=1)
"""How long it is known of a tick that it was enqueued. One that is noticed later than that isn't made up for."""
REMEMBERED_MS = int(REMEMBERED.total_seconds() * 1000)

# As arq's enqueue_job: an id that waits, runs or has a result is left alone. Where the id is the tick's own, so is one
# that stays in progress. A stock worker notes no ticks, so a tick is noted whoever has enqueued it.
ENQUEUE_TICK = (
    WAKE
    + """
local queue, id, is_own, tick, remembered = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local due, message, expires = tonumber(ARGV[5]), ARGV[6], ARGV[7]
if tick ~= '' and not redis.call('SET', tick, 1, 'NX', 'PX', remembered) then return end
if redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id) > 0 then return end
if is_own == '1' and redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then return end
redis.call('SET', 'arq:job:' .. id, message, 'PX', expires)
redis.call('ZADD', queue, due, id)
local time = redis.call('TIME')
if due <= time[1] * 1000 + math.floor(time[2] / 1000) then wake(queue) end
"""
)

_ENQUEUE_TICK = scripts.Script(ENQUEUE_TICK)


async def enqueue_ticks(worker: arq.worker.Worker, now: datetime, until: datetime) -> None:
    """Enqueue what is due before `until`. A tick that Redis doesn't take comes again with the next look."""
    for cron_job in worker.cron_jobs:
        if cron_job.next_run is None and not cron_job.run_at_startup:
            cron_job.calculate_next(now)
            continue  # not in this look in any case, as in arq
        tick = cron_job.next_run or now
        if tick < now - REMEMBERED:
            cron_job.calculate_next(now - REMEMBERED)
        elif tick < until:
            await _enqueue(worker, cron_job, tick)
            cron_job.calculate_next(tick)


async def _enqueue(worker: arq.worker.Worker, cron_job: CronJob, tick: datetime) -> None:
    now_ms, tick_ms = time.time_ns() // 1_000_000, to_unix_ms(tick)
    due_ms = max(now_ms, tick_ms)
    is_own, is_shared = cron_job.unique and not cron_job.job_id, cron_job.unique or cron_job.job_id
    job_id = cron_job.job_id or (f"{cron_job.name}:{tick_ms}" if cron_job.unique else uuid4().hex)
    # By the worker's own serializer: that of a pool which it was given may write what it can't read.
    message = serialize_job(cron_job.name, (), {}, None, now_ms, serializer=worker.job_serializer)
    arguments = (
        *(job_id, int(is_own)),
        *(f"ratchet:tick:{worker.queue_name}:{job_id}:{tick_ms}" if is_shared else "", REMEMBERED_MS),
        *(due_ms, message, due_ms - now_ms + worker.pool.expires_extra_ms),
    )
    await scripts.run(worker.pool, scripts.Call(_ENQUEUE_TICK, [worker.queue_name], arguments))
