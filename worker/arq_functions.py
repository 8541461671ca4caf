"""Plain arq functions: what arq's Worker does with a job once it has the message, with its hooks and its log lines.

It differs in three things that matter here; docs/limits.md has the others. A job that can't be run, because its name is
unknown or its message can't be read, is offered again and never deleted. A try that ends because the worker stops isn't
counted. A hook that fails when the job has ended is told of, and stops no worker.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import arq.worker
from arq.cron import CronJob
from arq.jobs import SerializationError
from arq.utils import timestamp_ms, truncate
from arq.worker import Function, JobExecutionFailed, Retry, RetryJob

from worker.arq_job import ArqJob
from worker.delivery import Delivery, Report
from worker.outcome import OFFER_AGAIN, Cancelled, Completed, Dead, Released, Retrying, describe
from worker.shield import answer_cancellation, is_cancelled

MAX_STRANGERS = 1_000
"""Jobs that are told of and remembered; a burst, which ends, remembers all. Whoever may enqueue chooses their ids."""

logger = logging.getLogger("arq.worker")

Context = dict[Any, Any]


class ArqFunctions:
    """The functions and cron jobs of one worker."""

    def __init__(self, worker: arq.worker.Worker) -> None:
        """`worker` has them, with their settings."""
        self._worker = worker
        self.strangers: set[str] = set()
        """Ids of jobs that this worker can't run."""

    async def execute(self, delivery: Delivery) -> Report:
        """Carry out one delivery. Raises what `on_job_start` raises."""
        worker, job = self._worker, ArqJob(self._worker, delivery, delivery.failures + 1)
        function = self._find(job)
        if isinstance(function, Report):
            return function
        context = {
            **worker.ctx,
            "job_id": delivery.job_id,
            "job_try": job.tries,
            "enqueue_time": job.enqueued,
            "score": delivery.due_ms,
        }
        if worker.on_job_start:
            _extend(job)
            await worker.on_job_start(context)
        report = await self._call(job, function, context)
        if worker.on_job_end:
            _extend(job)
            await _run_hook(worker.on_job_end, context)
        if worker.after_job_end:
            return replace(report, afterwards=partial(_run_hook, worker.after_job_end, context))
        return report

    def _find(self, job: ArqJob) -> Function | CronJob | Report:
        """The function that the message asks for, or what becomes of the job without one."""
        message, job_id = job.delivery.message, job.delivery.job_id
        if message is None:
            logger.warning("job %s expired", job_id)
            return _failed(job, JobExecutionFailed("job expired"))
        try:
            job.read(message)
        except (SerializationError, TypeError, ValueError, OverflowError) as error:
            cause = type(error.__cause__ or error).__name__  # whose text may quote the message
            return self._offer(job_id, f"its message can't be read ({cause}) by the worker's job_deserializer")
        if job.delivery.hold.is_aborted():
            logger.info("%6.2fs ⊘ %s aborted before start", job.age_s(), job.ref)
            return _failed(job, asyncio.CancelledError())
        if job.function is None:
            return self._offer(job_id, f"function {job.name!r} not found")
        if job.tries > job.max_tries():
            logger.warning("%6.2fs ! %s max retries %d exceeded", job.age_s(), job.ref, job.max_tries())
            return _failed(job, JobExecutionFailed(f"max {job.max_tries()} retries exceeded"))
        return job.function

    def _offer(self, job_id: str, reason: str) -> Report:
        """Leave it for a worker that can run it. One warning a job."""
        if job_id not in self.strangers and (self._worker.burst or len(self.strangers) < MAX_STRANGERS):
            logger.warning("job %s, %s; it is offered again until a worker can run it", job_id, reason)
            self.strangers.add(job_id)
        return Report(Released(reason, OFFER_AGAIN, others_first=True))

    async def _call(self, job: ArqJob, function: Function | CronJob, context: Context) -> Report:
        timeout_s = job.timeout_s()
        _extend(job)
        job.started_ms = timestamp_ms()
        is_logged, extra, told = logger.isEnabledFor(logging.INFO), None, ""
        try:
            if is_logged:
                job.log_start()
            try:
                async with asyncio.timeout(timeout_s):
                    result = await function.coroutine(context, *job.args, **job.kwargs)
            except (Exception, asyncio.CancelledError) as error:
                extra = getattr(error, "extra", None)
                extra = extra() if callable(extra) else extra
                raise
            if is_logged and self._worker.log_results and result is not None:
                told = truncate(repr(result))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is the job's
            return self._raised(job, error, extra)
        logger.info("%6.2fs ← %s ● %s", job.took_s(), job.ref, told)
        return Report(Completed(), kept=job.kept(result, success=True), stays=job.stays())

    def _raised(self, job: ArqJob, error: BaseException, extra: Any) -> Report:
        """An exception asks for another try, or it is the job's result."""
        retries, stops = self._worker.retry_jobs, is_cancelled() and job.delivery.hold.is_stopping()
        # One whose time is over may be what its process is stopped for: a try is a try then.
        is_spared = stops and not job.is_overdue()
        answer_cancellation()
        is_cancellation = isinstance(error, asyncio.CancelledError)
        if retries and isinstance(error, Retry):
            delay = timedelta(milliseconds=error.defer_score or 0)
            logger.info("%6.2fs ↻ %s retrying job in %0.2fs", job.took_s(), job.ref, delay.total_seconds())
            return Report(Retrying(delay, "Retry"), attempt=job.tries, stays=job.stays())
        if is_cancellation and job.delivery.hold.is_aborted():
            logger.info("%6.2fs ⊘ %s aborted", job.took_s(), job.ref)
            return _failed(job, error)
        if retries and (is_cancellation or isinstance(error, RetryJob)):
            logger.info("%6.2fs ↻ %s cancelled, will be run again", job.took_s(), job.ref)
            again = Retrying(timedelta(0), type(error).__name__)
            return Report(again, attempt=job.tries - is_spared, stays=job.stays())
        logger.error(
            *("%6.2fs ! %s failed, %s: %s", job.took_s(), job.ref, type(error).__name__, error),
            exc_info=error,
            extra={"extra": extra},
        )
        return _failed(job, error)


def _extend(job: ArqJob) -> None:
    """What begins now may take as long as the function may."""
    timeout_s = job.timeout_s()
    job.delivery.hold.begins(timedelta.max if timeout_s is None else timedelta(seconds=timeout_s))


def _failed(job: ArqJob, error: BaseException) -> Report:
    outcome = Cancelled("aborted") if isinstance(error, asyncio.CancelledError) else Dead(describe(error))
    return Report(outcome, kept=job.kept(error, success=False), stays=job.stays())


async def _run_hook(hook: Callable[[Context], Awaitable[None]], context: Context) -> None:
    """The job has ended; whatever the hook raises changes that no more."""
    try:
        await hook(context)
    except (Exception, asyncio.CancelledError):
        answer_cancellation()
        logger.exception("job %s, a hook at its end failed", context["job_id"])
