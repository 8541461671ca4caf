"""Worker: arq's, with leases. Claims due jobs, has each run, settles it in Redis. Knows nothing of sessions."""

import asyncio
import math
import os
import random
import socket
import time
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from signal import Signals
from typing import Any, assert_never
from uuid import uuid4

import arq.worker
import structlog
from redis.exceptions import RedisError

from worker.aborts import Aborts
from worker.acknowledgements import Acknowledgements
from worker.arq_cron import enqueue_ticks
from worker.claim import Claim
from worker.delivery import Delivery, Report
from worker.endings import PutBack
from worker.engine import Engine
from worker.heartbeat import BEAT_EVERY_S, Heartbeat, beat
from worker.hooks import Hooks
from worker.lease_hold import LeaseHold
from worker.outcome import (
    BUSY,
    OFFER_AGAIN,
    Cancelled,
    Completed,
    Dead,
    Duplicate,
    Final,
    Released,
    Retrying,
    Snoozed,
    Yielded,
)
from worker.redis_trouble import RedisTrouble
from worker.shield import stop_if_cancelled
from worker.standalone import LEASE, attending, connect, engine_of, log_start
from worker.wire import deserialize, serialize

AWAY_DELAY_S = 0.5
"""Between looks while Redis is away."""
GATHER_S = 0.005
"""A few free slots are filled together after this long, rather than one by one: each claim costs as much as a job."""

POLLS = 0.8, 1.0
"""Of `poll_delay`: never in step with other workers, nor with who enqueues at a pace of its own."""


class Worker(arq.worker.Worker):
    """arq's Worker, with its arguments and habits; only how jobs are taken, held and settled is ours."""

    def __init__(self, functions: Sequence[Any] = (), **arguments: Any) -> None:
        """Takes what arq's takes.

        Messages and results are JSON unless serializers are given: what lies in a queue isn't unpickled unasked.
        """
        codecs: dict[str, Any] = {"job_serializer": serialize, "job_deserializer": deserialize}
        given = {name: value for name, value in arguments.items() if name not in codecs or value is not None}
        super().__init__(functions, **{**codecs, **given})  # arq takes None for pickle
        self._queues: tuple[str, ...] = (self.queue_name,)
        self._name = uuid4().hex
        self._claims_made = 0
        self._started_ms = time.time_ns() // 1_000_000
        self._next_beat = 0.0
        self._bell = asyncio.Event()
        """Rung by `wake`, and when a rest is over."""
        self._is_woken = False
        self._gathering: asyncio.TimerHandle | None = None
        self._has_more = True
        """Whether the last claim filled all free slots."""
        self._due_in_s: float | None = None
        """When the next job is due that isn't yet, as far as is known."""
        self._sharing: set[str] = set()
        """Jobs that wait in a batch of another, which has the slot."""
        self._hooks = Hooks(self._slot_is_free)
        self._aborts = Aborts(self.job_tasks, self.aborting_tasks, self.poll_delay_s)
        self._main: asyncio.Task[Any] | None = None
        self._waiting: asyncio.Task[Any] | None = None
        """arq's, which waits for jobs before it cancels all."""
        self._log = structlog.get_logger("worker.consumer")

    @cached_property
    def _engine(self) -> Engine:
        grace = timedelta(seconds=self._job_completion_wait) + LEASE
        return engine_of(self, grace, owns_process=self._handle_signals)

    @cached_property
    def _trouble(self) -> RedisTrouble:
        return RedisTrouble(self._engine.leases.renew_every_s)

    @cached_property
    def _acknowledgements(self) -> Acknowledgements:
        return Acknowledgements(
            self._engine.claims,
            self._engine.leases,
            timedelta(seconds=self.keep_result_s or 0),
            is_busy=lambda: bool(self.tasks),
            told=self._told,
            done=self._all_are_told,
            fault=self._engine.fault,
        )

    def wake(self) -> None:
        """Something may be due: look now."""
        self._is_woken = True
        self._bell.set()

    def is_stopping(self) -> bool:
        """Whether no new jobs are taken any more. A loop that ends cancels `main` and the jobs in one go."""
        return not self.allow_pick_jobs or (self._main is not None and self._main.cancelling() > 0)

    def handle_sig(self, signum: Signals) -> None:
        """As arq's: cancel all. The jobs can tell why."""
        self.allow_pick_jobs = False
        super().handle_sig(signum)
        self._hooks.cancel()

    async def _sleep_until_tasks_complete(self) -> None:
        """As arq's, whose jobs have ended when their last hook has."""
        await super()._sleep_until_tasks_complete()
        await self._all_told()

    async def _wait_for_tasks_to_complete(self, signum: Signals) -> None:
        self._waiting = asyncio.current_task()
        await super()._wait_for_tasks_to_complete(signum)
        self._hooks.cancel()

    async def main(self) -> None:
        """Serve until told to stop; in burst mode, until nothing that this worker knows is due."""
        self._main = asyncio.current_task()
        if self._pool is None:
            self._pool = await connect(self)
        async with attending(self._engine, self.pool, self._name, None if self.burst else self.wake):
            try:
                await log_start(self)
                await self._consume()
            finally:
                await self._all_told()

    async def _consume(self) -> None:
        self.ctx["redis"] = self.pool
        if self.on_startup:
            await self.on_startup(self.ctx)
        while not (self.is_stopping() and not self.tasks):
            stop_if_cancelled()  # redis-py may have swallowed it
            is_woken, self._is_woken = self._is_woken, False
            self._bell.clear()
            try:
                if self._trouble.is_away():
                    await self.pool.ping()
                    self._trouble.is_over()
                await self._beat()
                is_last = self._is_idle() and self.burst and not await self._engine.refill()
                taken = await self._take(in_earnest=is_woken or is_last or self._has_more)
            except Exception as error:  # noqa: BLE001 - the worker goes on
                self._say_trouble(error)
                await self._rest(AWAY_DELAY_S)
                continue
            if is_last and not taken and self._is_idle() and self._may_claim():
                return
            if self.burst and 0 <= self.max_burst_jobs <= self._jobs_started():
                await asyncio.gather(*self.tasks.values())
                return
            # A heartbeat and the idle marks (claims.py) must not wait for a poll that is seldom.
            pause = min(self.poll_delay_s * random.uniform(*POLLS), BEAT_EVERY_S)  # noqa: S311
            await self._rest(min(self._due_in_s or pause, pause))
        if self._waiting is not None:  # it tells `on_stop`, and then cancels this
            await asyncio.wait((self._waiting,))

    async def _beat(self) -> None:
        if self.allow_abort_jobs:
            with self._trouble.bearing_refusals():
                await self._aborts.look(self.pool)
        await self.heart_beat()

    async def _poll_iteration(self) -> None:
        """Look once, for whoever drives a worker by hand. arq's name."""
        await self._beat()
        await self._take(in_earnest=True)

    async def start_jobs(self, job_ids: list[bytes]) -> None:  # noqa: ARG002 - arq's signature
        """Take what is due, whichever ids are named: a job begins with a claim, and has a lease."""
        await self._take(in_earnest=True)

    def _is_idle(self) -> bool:
        return not self.tasks and not self._acknowledgements.is_pending()

    def _free(self) -> int:
        return self.max_jobs - len(self.tasks) - len(self._hooks) + len(self._sharing)

    async def _take(self, *, in_earnest: bool) -> int:
        """Claim jobs for free slots, half of all at most, and start them. Returns how many.

        The other half is claimed while these run: the worker never waits for Redis with nothing to do.
        Unless `in_earnest`, a cheap look comes first, which is all that an idle worker costs.
        """
        want = self._wanted()
        if want <= 0 or not self._may_claim():
            self._has_more |= in_earnest  # the word that woke us is used up, and still holds
            return 0
        self._due_in_s = None
        if not in_earnest and not await self._is_something_due():
            return 0
        claims = await self._claim(want)
        # A stranger has no permit of its own: that of its id is the running job's.
        strangers = [claim for claim in claims if not self._start(claim)]
        if not self._has_more:
            await asyncio.sleep(0)  # jobs first: nobody waits for what follows
        elif claims and self._free() > 0:
            self.wake()
        await self._engine.claims.settle([PutBack(replace(claim, limited=""), BUSY) for claim in strangers])
        return len(claims)

    def _wanted(self) -> int:
        want = min(self._free(), math.ceil(self.max_jobs / 2), self.queue_read_limit)
        if self.burst and self.max_burst_jobs >= 0:
            want = min(want, self.max_burst_jobs - self._jobs_started())
        return want

    async def _is_something_due(self) -> bool:
        """The cheap look. Remembers when the next job is due, where none is."""
        due_ms = await self._engine.claims.look(self._queues)
        if due_ms is not None and due_ms <= 0:
            return True
        self._due_in_s = due_ms and due_ms / 1000
        return False

    async def _claim(self, want: int) -> list[Claim]:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._claims_made += 1
        token, along = f"{self._name}.{self._claims_made}", self._acknowledgements.hand_over
        asked, claimer = time.monotonic(), self._engine.claims
        claims = await claimer.take(self._engine.draw(), want, token, along)
        self._has_more = claimer.has_more
        if not claimer.are_aborts:
            self._aborts.were_none(asked)
        return claims

    def _may_claim(self) -> bool:
        return not self.is_stopping() and self._engine.may_claim() and self._trouble.may_claim()

    def _say_trouble(self, error: Exception) -> None:
        if isinstance(error, RedisError | OSError):
            self._trouble.met(error)
        else:
            self._engine.fault(error)

    async def _rest(self, seconds: float) -> None:
        over = self.loop.call_later(seconds, self._bell.set)  # asyncio.timeout costs more
        try:
            await self._bell.wait()
        finally:
            over.cancel()

    def _start(self, claim: Claim) -> bool:
        """False: a job of this id runs here, and this is another one."""
        if claim.job_id in self.tasks:
            return self._engine.leases.take_over(claim)
        self._engine.leases.hold(claim)
        if claim.aborted and self.allow_abort_jobs:
            self.aborting_tasks.add(claim.job_id)
        hold = LeaseHold(self, claim, self._engine)
        delivery = Delivery(
            claim.job_id,
            claim.queue,
            claim.message,
            hold,
            claim.claimed_ms,
            claim.due_ms,
            claim.failures,
            claim.is_suspect,
        )
        context = copy_context()
        task = self.loop.create_task(self._engine.execute(delivery), context=context)
        self.job_tasks[claim.job_id] = self.tasks[claim.job_id] = task
        task.add_done_callback(partial(self._ended, claim, context))
        return True

    def _ended(self, claim: Claim, context: Context, task: asyncio.Task[Report]) -> None:
        """The slot is free; Redis is told a moment later."""
        del self.tasks[claim.job_id], self.job_tasks[claim.job_id]
        self.aborting_tasks.discard(claim.job_id)
        self._sharing.discard(claim.job_id)
        if task.cancelled():
            report = Report(Released("the worker stops"))
        elif error := task.exception():  # one job's fault is no other's
            self._engine.fault(error)
            report = Report(Released("the runtime failed", OFFER_AGAIN))
        else:
            report = task.result()
            report.context = context
        self._count(report)
        self._acknowledgements.add(claim, report)
        self._slot_is_free()

    def share_slot(self, claim: Claim) -> None:
        """This job waits in a batch of another, which has the slot: its own is free."""
        self._sharing.add(claim.job_id)
        self._slot_is_free()

    def take_slot(self, claim: Claim) -> None:
        """A batch begins, in the slot of this delivery."""
        self._sharing.discard(claim.job_id)

    def _slot_is_free(self) -> None:
        """Claim again: at once where half of the slots are free, else when a few more may be."""
        if self._is_woken:
            return
        if not self._has_more:
            if self.burst or self.is_stopping():
                self.wake()
        elif 2 * self._free() >= self.max_jobs:
            self.wake()
        elif self._gathering is None:
            self._gathering = self.loop.call_later(GATHER_S, self.wake)

    def _count(self, report: Report) -> None:
        match report.outcome:
            case Completed() | Duplicate():
                self.jobs_complete += 1
            case Dead() | Cancelled():
                self.jobs_failed += 1
            case Retrying() | Snoozed() | Yielded():
                self.jobs_retried += 1
            case Released():
                pass
            case _:
                assert_never(report.outcome)

    def _told(self, report: Report, claim: Claim) -> None:
        """Redis was told of a job's end."""
        if isinstance(report.outcome, Final):
            self._engine.acknowledged(claim.job_id)
        self._hooks.start(report)

    def _all_are_told(self) -> None:
        """A burst may be over."""
        if self.burst:
            self.wake()

    async def _all_told(self) -> None:
        """Wait until Redis knows what has ended, and whoever wants to hear of that has."""
        await self._acknowledgements.all_sent()
        await self._hooks.all_ended()

    async def record_health(self) -> None:
        """arq's line, and for `worker status` a word about this worker. A full Redis takes none, and jobs go on."""
        with self._trouble.bearing_refusals():
            await super().record_health()
            if time.monotonic() < self._next_beat:
                return
            host, pid, running = socket.gethostname(), os.getpid(), len(self.tasks)
            await beat(self.pool, Heartbeat(self._name, host, pid, self._queues, running, self._started_ms))
        self._next_beat = time.monotonic() + min(BEAT_EVERY_S, self.health_check_interval)

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:
        """arq's look for cron jobs that are due within so many windows of `delay` seconds."""
        with self._trouble.bearing_refusals():  # a full Redis takes none, and jobs go on
            await enqueue_ticks(self, n, n + timedelta(seconds=delay * num_windows))

    async def close(self) -> None:
        """As arq's; before the connection goes, Redis is told what came of the last jobs."""
        if not self._handle_signals:
            self.handle_sig(Signals.SIGUSR1)
        if self._pool is None:
            return
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        if self._main is not None and not self._main.done() and self.is_stopping():
            self.wake()
            await asyncio.wait((self._main,))  # it still says farewell, on this connection
        await self._all_told()
        await self.pool.delete(self.health_check_key)
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self.pool.aclose(close_connection_pool=True)
        self._pool = self._waiting = None
        self.allow_pick_jobs = True  # it may be started again, as arq's, and has another connection then
        for part in ("_engine", "_trouble", "_acknowledgements"):
            self.__dict__.pop(part, None)
