"""A plain arq function for a stock worker and ours on one queue: `arq tests.consumer.mixed.WorkerSettings`."""

import asyncio
import os
from typing import Any

from worker.broker import arq_settings
from worker.wire import deserialize, serialize

RAN, WORKERS = "test:ran", "test:workers"


async def run(ctx: dict[Any, Any]) -> None:
    """Note that this process ran this job, when two processes have had one."""
    redis = ctx["redis"]
    await redis.sadd(WORKERS, os.getpid())
    while await redis.scard(WORKERS) < 2:  # noqa: ASYNC110 - what another process does has no event here
        await asyncio.sleep(0.01)
    await redis.rpush(RAN, f"{ctx['job_id']} {os.getpid()}")


async def alone(redis: Any) -> None:
    """From now on a job runs, though no second process has one."""
    await redis.sadd(WORKERS, "one", "another")


async def ran(redis: Any) -> dict[str, tuple[int, ...]]:
    """Which processes ran each job."""
    by_whom: dict[str, tuple[int, ...]] = {}
    for line in await redis.lrange(RAN, 0, -1):
        job_id, pid = line.decode().split()
        by_whom[job_id] = (*by_whom.get(job_id, ()), int(pid))
    return by_whom


class WorkerSettings:
    functions = (run,)
    redis_settings = arq_settings(os.environ.get("REDIS_URL", "redis://"))
    job_serializer = serialize
    job_deserializer = deserialize
