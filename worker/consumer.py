"""Worker: arq's, with leases. Claims due jobs, has each executed, and settles it in Redis. Knows nothing of sessions."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from signal import Signals
from typing import Any, assert_never
from uuid import uuid4

import arq.worker
import structlog
from redis.exceptions import RedisError

from worker.claim import Claim, Claims
from worker.delivery import Delivery, Report
from worker.lease import Leases
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Released, Retrying, Snoozed, Yielded
from worker.shield import to_its_end
from worker.wire import ABORTED, Result, encode_result

AWAY_DELAY_S = 0.5
"""Between looks while Redis is away."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the consumer is given beside arq's own arguments."""

    execute: Callable[[Delivery], Awaitable[Report]]
    may_claim: Callable[[], bool]
    """False while PostgreSQL is away."""
    acknowledged: Callable[[], None]
    """Told after each job that left Redis: the relay may have one of the same id waiting."""
    refill: Callable[[], Awaitable[bool]]
    """Before a burst ends: whether anything more was put into Redis."""
    leases: Leases
    claims: Claims


class Worker(arq.worker.Worker):
    """arq's Worker, with its arguments and habits; only how jobs are taken, held and settled is ours."""

    def __init__(self, functions: Sequence[Any], *, engine: Engine, queues: Sequence[str], **arguments: Any) -> None:
        """`functions` and `arguments` are arq's; `queues` are served in this order."""
        super().__init__(functions, queue_name=queues[0], allow_abort_jobs=True, **arguments)
        self._engine = engine
        self._queues = tuple(queues)
        self._name = uuid4().hex
        self._claimed = 0
        self._wake = asyncio.Event()
        self._redis_away = False
        self._log = structlog.get_logger("worker.consumer")

    def wake(self) -> None:
        """Something may be due: look now."""
        self._wake.set()

    def is_stopping(self) -> bool:
        """Whether no new jobs are taken any more."""
        return not self.allow_pick_jobs

    async def serve(self) -> None:
        """Run until it is stopped, and leave nothing running: what didn't end within the grace is put back."""
        self.main_task = asyncio.ensure_future(self.main())
        try:
            await self.main_task
        except asyncio.CancelledError:
            if not self.is_stopping():
                raise
        finally:
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)
            self._engine.leases.stop()
            for signum in (Signals.SIGINT, Signals.SIGTERM):
                self.loop.remove_signal_handler(signum)

    async def main(self) -> None:
        """Serve until cancelled; in burst mode, until nothing that this worker knows is due."""
        if self.on_startup:
            await self.on_startup(self.ctx)
        self._engine.leases.start()
        while True:
            self._wake.clear()
            try:
                more = await self._look()
            except (RedisError, OSError) as error:
                if not self._redis_away:
                    self._log.warning("redis_away", reason=type(error).__name__, hint="trying until it is back")
                self._redis_away = True
                await asyncio.sleep(AWAY_DELAY_S)
                continue
            if self._redis_away:
                self._redis_away = False
                self._log.warning("redis_back")
            if more:
                continue
            if self.burst and not self.tasks and self._engine.may_claim() and not await self._engine.refill():
                return
            await self._rest()

    async def _look(self) -> bool:
        """Take what is due, and do what arq does at each poll. True: there may be more to take at once."""
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                task.result()
        taken = 0
        for queue in self._queues:
            free = self.max_jobs - len(self.tasks)
            if free <= 0 or self.is_stopping() or not self._engine.may_claim():
                break
            self._claimed += 1
            claims = await self._engine.claims.take(queue, free, f"{self._name}.{self._claimed}")
            for claim in claims:
                self._start(claim)
            taken += len(claims)
        if self.tasks:
            await self._cancel_aborted_jobs()
        await self.heart_beat()
        return taken > 0 and len(self.tasks) < self.max_jobs

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self.poll_delay_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _start(self, claim: Claim) -> None:
        self._engine.leases.hold(claim)
        if claim.aborted:
            self.aborting_tasks.add(claim.job_id)
        task = self.loop.create_task(self._deliver(claim), name=f"job {claim.job_id}")
        self.tasks[claim.job_id] = self.job_tasks[claim.job_id] = task
        task.add_done_callback(lambda _: self.wake())

    async def _deliver(self, claim: Claim) -> None:
        hold = _LeaseHold(self, claim, self._engine.leases)
        try:
            report = await self._engine.execute(
                Delivery(claim.job_id, claim.queue, claim.message, hold, claim.claimed_ms, claim.due_ms, claim.failures)
            )
            await to_its_end(self._settle(claim, report))
        finally:
            self.job_tasks.pop(claim.job_id, None)
            self.aborting_tasks.discard(claim.job_id)

    async def _settle(self, claim: Claim, report: Report) -> None:
        """Tell Redis. What can't be told is left to the lease: the job is delivered again, and is a Duplicate then."""
        await self._engine.leases.drop(claim)
        try:
            match report.outcome:
                case Completed() | Duplicate() | Cancelled() | Dead():
                    kept = self._engine.claims.finish(
                        claim, result_of(claim, report), timedelta(seconds=self.keep_result_s or 0)
                    )
                    settled = await kept
                    self._engine.acknowledged()
                case Snoozed() | Retrying() | Released():
                    settled = await self._put_back(claim, report, report.outcome.delay)
                case Yielded():
                    settled = await self._put_back(claim, report, timedelta(0))
                case _:
                    assert_never(report.outcome)
        except (RedisError, OSError) as error:
            self._log.warning(
                "not_acknowledged",
                job_id=claim.job_id,
                reason=type(error).__name__,
                hint="it is delivered again, and is a duplicate then",
            )
            return
        if not settled:
            self._log.info("lease_was_lost", job_id=claim.job_id, outcome=type(report.outcome).__name__.lower())

    async def _put_back(self, claim: Claim, report: Report, delay: timedelta) -> bool:
        retried = isinstance(report.outcome, Retrying)
        self.jobs_retried += retried
        failures = report.attempt if retried else claim.failures
        return await self._engine.claims.put_back(claim, delay, adopted=report.adopted, failures=failures)

    async def is_ours(self, claim: Claim) -> bool:
        """Whether the in-progress key still holds our token."""
        held: bytes | None = await self.pool.get(f"arq:in-progress:{claim.job_id}")
        return held == claim.token.encode()

    def handle_sig(self, signum: Signals) -> None:
        """arq's, where no grace is given; and no new claims."""
        self.allow_pick_jobs = False
        super().handle_sig(signum)


class _LeaseHold:
    """A worker's hold on one claim."""

    def __init__(self, worker: Worker, claim: Claim, leases: Leases) -> None:
        self._worker = worker
        self._claim = claim
        self._leases = leases

    async def is_ours(self) -> bool:
        try:
            return await self._worker.is_ours(self._claim)
        except (RedisError, OSError):
            return False

    def begins(self, timeout: timedelta) -> None:
        self._leases.extend(self._claim, timeout)

    def is_stopping(self) -> bool:
        return self._worker.is_stopping()

    def is_aborted(self) -> bool:
        return self._claim.job_id in self._worker.aborting_tasks


def result_of(claim: Claim, report: Report) -> bytes:
    """The bytes of `arq:result` for a job that has ended."""
    success, value = True, None
    match report.outcome:
        case Completed(result):
            value = result
        case Duplicate(result, failed):
            success, value = failed is None, result if failed is None else failed
        case Cancelled(reason):
            success, value = False, f"{ABORTED}: {reason}"
        case Dead(error):
            success, value = False, error
        case _:
            raise AssertionError(f"{report.outcome} is no end.")
    now = time.time_ns() // 1_000_000
    started, finished = report.started_ms or now, report.finished_ms or now
    return encode_result(
        Result(claim.job_id, claim.queue, report.message, report.attempt, success, value, started, finished)
    )
