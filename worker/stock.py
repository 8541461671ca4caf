"""The same executor under the stock `arq` command: all that is promised of jobs that can be run holds.

Leases, speed, and that nothing is deleted that could not be run, need `worker run`.

arq's command always builds arq's own Worker, so the jobs appear as plain arq functions that look their message up.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any, assert_never

from arq.connections import ArqRedis, RedisSettings
from arq.worker import Function, Retry, func

from worker.app import App
from worker.broker import arq_settings
from worker.delivery import Delivery, Report
from worker.executor import Executor
from worker.lifespan import opened
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Released, Retrying, Snoozed, Yielded
from worker.reporting.logs import tell_loop_errors
from worker.reporting.start import start_reporting
from worker.runtime import services
from worker.settings import DEFAULT_CONCURRENCY, DEFAULT_KEEP_RESULT, DEFAULT_REDIS_URL, load_settings
from worker.shield import cancel_all
from worker.stock_aborts import StockAborts
from worker.wire import ABORT_SET, ABORTED, JOB_KEY, JobFailed, deserialize, serialize

MAX_TRIES = 2**31
"""arq counts deliveries, and would give up; the ledger counts failures."""
BEYOND_TIMEOUT = timedelta(seconds=60)
"""The runtime's own timeout comes first."""

SERVICES = "ratchet"
"""Where arq's context carries the executor."""


def worker_settings(app: App, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What `arq module.WorkerSettings` takes. The rest of the settings is read, and checked, when the worker starts.

    Never raises: the module is imported by `worker run` too, which has sentences for settings that can't work.
    """
    return {
        "functions": _functions(app),
        "redis_settings": _redis_settings(environment),
        "job_serializer": serialize,
        "job_deserializer": deserialize,
        "on_startup": partial(_start, app),
        "on_shutdown": _stop,
        "max_jobs": _concurrency(environment),
        "max_tries": MAX_TRIES,
        "keep_result": _keep_result(environment),
        "log_results": False,
    }


def _redis_settings(environment: Mapping[str, str]) -> RedisSettings:
    try:
        return arq_settings(environment.get("REDIS_URL") or DEFAULT_REDIS_URL)
    except (ValueError, TypeError):
        return RedisSettings()  # the worker doesn't start: its settings are refused


def _concurrency(environment: Mapping[str, str]) -> int:
    """As many jobs as the pool has connections for."""
    given = environment.get("WORKER_CONCURRENCY", "")
    return int(given) if given.isdecimal() else DEFAULT_CONCURRENCY


def _keep_result(environment: Mapping[str, str]) -> float:
    """For so long the `job_id` of a direct job is known, so a stock worker mustn't keep it for less than the others."""
    try:
        return float(environment.get("WORKER_KEEP_RESULT") or DEFAULT_KEEP_RESULT)
    except ValueError:
        return DEFAULT_KEEP_RESULT  # as above


def _functions(app: App) -> list[Function]:
    run: Any = _run_stock  # arq's protocol would let `ctx` be a keyword, which a payload may need
    return [
        func(run, name=name, timeout=handler.timeout + BEYOND_TIMEOUT, max_tries=MAX_TRIES)
        for name, handler in app.handlers.items()
    ]


async def _start(app: App, ctx: dict[str, Any]) -> None:
    settings = load_settings()
    observers = start_reporting(settings, app.schedule)
    tell_loop_errors(asyncio.get_running_loop())
    end = partial(signal.raise_signal, signal.SIGTERM)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(opened(app.lifespan, observers))
        parts = await stack.enter_async_context(services(app, settings, observers, pushed=lambda: None, end=end))
        aborts = StockAborts(parts.redis)
        stack.push_async_callback(cancel_all, [parts.vital.start("aborts", aborts.watch())])
        ctx[SERVICES] = (stack.pop_all(), parts.executor, aborts)


async def _stop(ctx: dict[str, Any]) -> None:
    if SERVICES in ctx:  # arq asks for a shutdown after a start that failed, too
        stack, *_ = ctx[SERVICES]
        await stack.aclose()


async def _run_stock(ctx: dict[str, Any], /, *_args: Any, **_payload: Any) -> Any:
    """One arq function for all jobs: arq's arguments leave out what the message says, so it is read again."""
    redis: ArqRedis = ctx["redis"]
    job_id: str = ctx["job_id"]
    executor: Executor
    aborts: StockAborts
    _, executor, aborts = ctx[SERVICES]
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get(JOB_KEY + job_id)
        pipe.zscore(ABORT_SET, job_id)
        message, asked = await pipe.execute()
    due_ms = int(ctx["score"])  # arq doesn't say when it took the job: as if it had done so at once
    with aborts.told_of(job_id, is_aborted=asked is not None) as hold:
        report = await executor.execute(Delivery(job_id, redis.default_queue_name, message, hold, due_ms, due_ms))
    if report.adopted:
        await redis.set(JOB_KEY + job_id, report.adopted, xx=True, keepttl=True)
    return _as_arq_would(report)


def _as_arq_would(report: Report) -> Any:
    """The result, or the exception, that tells arq's worker what to do with the message."""
    match report.outcome:
        case Completed(result) | Duplicate(result, None):
            return result
        case Duplicate(_, failed):
            raise JobFailed(failed)
        case Dead(error):
            raise JobFailed(error)
        case Cancelled(reason):
            raise JobFailed(f"{ABORTED}: {reason}")
        case Snoozed(delay) | Released(_, delay) | Retrying(delay, _):
            raise Retry(delay)
        case Yielded(delay):
            raise Retry(delay)
        case _:
            assert_never(report.outcome)
