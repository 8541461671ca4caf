"""A Worker that was given no engine: it calls plain arq functions, and stands on nothing but Redis."""

import logging
import os
from asyncio import create_task
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import arq.worker
from arq.connections import ArqRedis, create_pool, log_redis_info
from redis.exceptions import RedisError

from worker.arq_functions import ArqFunctions
from worker.claims import Claims
from worker.engine import Engine
from worker.heartbeat import farewell
from worker.lease import Leases, end_this_process
from worker.shield import cancel_all
from worker.wake import listen_for_wakes

LEASE = timedelta(seconds=15)

logger = logging.getLogger("arq.worker")


def engine_of(worker: arq.worker.Worker, grace: timedelta, *, owns_process: bool) -> Engine:
    """What runs the functions of `worker`, which is connected.

    A job keeps its lease for `grace` beyond its timeout. Where that is over, a worker that owns its process ends it.
    """
    functions, queue = ArqFunctions(worker), worker.queue_name
    recycle = end_this_process(grace) if owns_process else _leave_it

    async def has_more() -> bool:
        """A burst goes on, as arq's does, until the queue is empty; what nobody here can run doesn't count."""
        waiting: int = await worker.pool.zcard(queue)
        if not functions.strangers or waiting > len(functions.strangers):
            return waiting > 0
        strangers = list(functions.strangers)  # somebody else may have run some meanwhile
        scores: list[float | None] = await worker.pool.zmscore(queue, strangers)
        return waiting > sum(score is not None for score in scores)

    return Engine(
        execute=functions.execute,
        may_claim=lambda: True,
        acknowledged=lambda _job_id: None,
        refill=has_more,
        fault=_log_fault,
        abandon=partial(os._exit, os.EX_SOFTWARE),
        leases=Leases(worker.pool, LEASE, grace, recycle=recycle, fault=_log_fault, counts_tries=True),
        claims=Claims(worker.pool, LEASE, marks_idle=not worker.burst, may_expire=True),
        draw=lambda: (queue,),
    )


async def connect(worker: arq.worker.Worker) -> ArqRedis:
    """By the worker's `redis_settings`."""
    return await create_pool(
        worker.redis_settings,
        job_deserializer=worker.job_deserializer,
        job_serializer=worker.job_serializer,
        default_queue_name=worker.queue_name,
        expires_extra_ms=worker.expires_extra_ms,
    )


async def log_start(worker: arq.worker.Worker) -> None:
    """Say what arq says."""
    logger.info("Starting worker for %d functions: %s", len(worker.functions), ", ".join(worker.functions))
    await log_redis_info(worker.pool, logger.info)


@asynccontextmanager
async def attending(
    engine: Engine, redis: ArqRedis, name: str, wake: Callable[[], None] | None
) -> AsyncGenerator[None]:
    """Renew leases, and call `wake` when jobs come."""
    engine.leases.start()
    ears = [create_task(listen_for_wakes(redis, wake))] if wake else []
    try:
        yield
    finally:
        try:
            await cancel_all(ears)
        finally:  # though it is cancelled again: a thread that nobody stops would renew for ever
            engine.leases.stop()
        with suppress(RedisError, OSError):  # it runs out by itself
            await farewell(redis, name)


def _leave_it() -> None:
    """Its lease has run out, and another worker has the job; whose process this is knows what else runs in it."""


def _log_fault(error: BaseException) -> None:
    logger.error("%s: %s", type(error).__name__, error, exc_info=error)
