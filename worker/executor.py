"""One delivery -> one Outcome. The only try/except about jobs."""

import asyncio
import time
from dataclasses import replace
from typing import assert_never

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import run as ledger
from worker.availability import Availability
from worker.database import create_sessions
from worker.delivery import Delivery, Report
from worker.errors import Cancel, InvalidPayload, JobExpired, Snooze, UnknownJob
from worker.faults import is_conflict, is_lost_connection
from worker.handler import HandlerTable, keeps_run
from worker.outcome import (
    BUSY,
    OFFER_AGAIN,
    Cancelled,
    Completed,
    Dead,
    Outcome,
    Released,
    Retrying,
    Snoozed,
    Yielded,
    describe,
)
from worker.reporting.observer import Observation, Observer, Subject
from worker.retry import RetryPolicy
from worker.setback import Setbacks, cancelled, duplicate_of, failed, snoozed
from worker.shield import spend_cancellation, to_its_end
from worker.transaction import FateUnknown, LedgerBusy, Transactor, Work
from worker.wire import UNREADABLE_NAME, Message, Unreadable, decode, encode

IMMEDIATE_RETRIES = 3
"""For conflicts and lost connections, before they count as a failure."""


class Executor:
    """Runs deliveries of one app against one database."""

    def __init__(
        self, handlers: HandlerTable, engine: AsyncEngine, observer: Observer, availability: Availability, worker: str
    ) -> None:
        """`worker` names this process in the ledger."""
        self._handlers = handlers
        self._engine = engine
        self._observer = observer
        self._availability = availability
        self._transactor = Transactor(engine, create_sessions())
        self._setbacks = Setbacks(engine, availability, worker)
        self._unknown: set[str] = set()

    @property
    def handlers(self) -> HandlerTable:
        """The jobs that this worker knows, by name."""
        return self._handlers

    async def execute(self, delivery: Delivery) -> Report:
        """Carry out one delivery. Never raises for a job's sake; the outcome says what came of it."""
        if delivery.message is None:
            return Report(await self._without_message(delivery.job_id))
        message = decode(delivery.message)
        if isinstance(message, Unreadable):
            described, name, payload, headers = None, UNREADABLE_NAME, b"", dict[str, str]()
        elif message.name not in self._handlers:
            return Report(self._unknown_job(message.name), message)
        else:
            described, name, payload, headers = message, message.name, message.payload, dict(message.headers)
        latency_ms = max(0, delivery.delivered_ms - delivery.due_ms)
        subject = Subject(delivery.job_id, name, delivery.queue, message.enqueued_ms, latency_ms, headers, payload)
        started_ms = time.time_ns() // 1_000_000
        with self._observer.observe(subject) as observation:
            watch = _Watch(observation)
            try:
                outcome, error = await self._attempt(delivery, delivery.message, message, watch)
            except Exception as fault:  # noqa: BLE001 - a fault of the runtime: the job stays, and somebody is told
                self._observer.fault("executor", fault)
                outcome, error = Released("the runtime failed", OFFER_AGAIN), None
            observation.ended(outcome, error)
        adopted = None
        if described and not described.from_outbox and isinstance(outcome, Yielded | Snoozed | Retrying):
            adopted = encode(replace(described, from_outbox=True))
        return Report(outcome, described, watch.attempt, started_ms, time.time_ns() // 1_000_000, adopted)

    async def _attempt(
        self, delivery: Delivery, raw: bytes, message: Message | Unreadable, watch: "_Watch"
    ) -> tuple[Outcome, BaseException | None]:
        """Decode, carry out, and judge what was raised."""
        run, retry = _identity(delivery, message), RetryPolicy()
        if delivery.hold.is_aborted():
            return await to_its_end(
                self._setbacks.record(run, raw, None, cancelled(Cancelled("aborted before it began")))
            ), None
        try:
            if isinstance(message, Unreadable):
                raise InvalidPayload(f"The message can't be read: {message.reason}.")  # noqa: TRY301 - one place for both
            handler = self._handlers[message.name]
            retry = handler.retry
            job = handler.job.from_payload(message.payload)
        except InvalidPayload as error:
            return await to_its_end(self._setbacks.record(run, raw, None, failed(error, retry))), error
        return await self._carry_out(Work(run, job, handler, delivery, raw), watch)

    async def _carry_out(self, work: Work, watch: "_Watch") -> tuple[Outcome, BaseException | None]:
        """Transaction after transaction: the chunks of one delivery, and the immediate retries of each."""
        again, fate_unknown = 0, False
        while True:
            try:
                done = await self._transactor.carry_out(work, watch)
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever a handler raises
                spend_cancellation(error)
                # Of a handler that keeps no run the attempt saw only what Redis counts; the ledger knows.
                seen = watch.failures if keeps_run(work.handler) else None
                outcome = await to_its_end(self._judge(work, error, seen, again))
                if outcome is not None:
                    return outcome, error
                again, fate_unknown = again + 1, isinstance(error, FateUnknown)
                continue
            match done:
                case Yielded() if not work.delivery.hold.is_stopping():
                    # The chunk has made the job the outbox's; the next one begins anew.
                    work = replace(work, run=replace(work.run, from_outbox=True))
                    again, fate_unknown = 0, False
                case Completed() | Yielded():
                    return done, None
                case ledger.NotDue():
                    return Released("it isn't due", done.delay), None
                case ledger.Ended():
                    ours = fate_unknown and done.status == "completed"
                    return Completed(done.result) if ours else duplicate_of(done), None
                case _:
                    assert_never(done)

    async def _judge(self, work: Work, error: BaseException, seen: int | None, again: int) -> Outcome | None:
        """What an attempt that raised comes to. None: run it again at once, with nothing counted."""
        match error:
            case Snooze():
                decision = snoozed(Snoozed(error.delay), error)
            case Cancel():
                decision = cancelled(Cancelled(error.reason))
            case asyncio.CancelledError() if work.delivery.hold.is_aborted():
                decision = cancelled(Cancelled("aborted"))
            case asyncio.CancelledError():
                return Released("the worker stops")
            case LedgerBusy():
                conflict = error.__cause__ is not None and is_conflict(error.__cause__)
                return None if conflict and again < IMMEDIATE_RETRIES else Released(str(error), BUSY)
            case _:
                lost = isinstance(error, FateUnknown) or is_lost_connection(error)
                if lost and not await self._availability.check():
                    # Nothing counts. Where a commit was under way, the next begin reads its fate under the run's lock.
                    return Released("PostgreSQL is away", BUSY)
                if (lost or is_conflict(error)) and again < IMMEDIATE_RETRIES:
                    return None
                decision = failed(error, work.handler.retry)
        return await self._setbacks.record(work.run, work.message, seen, decision)

    def _unknown_job(self, name: str) -> Released:
        """Leave it for a worker that knows it. One warning a name."""
        error = UnknownJob(name)
        if name not in self._unknown:
            self._unknown.add(name)
            self._observer.fault("executor", error)
        return Released(describe(error), OFFER_AGAIN)

    async def _without_message(self, job_id: str) -> Outcome:
        """The id stands in the queue but its message is gone: the sweep brings it back if PostgreSQL knows the job."""
        try:
            async with self._engine.connect() as connection:
                known = (await connection.execute(_IS_KNOWN, {"id": job_id})).scalar_one()
        except Exception as error:  # noqa: BLE001 - not known now; it is offered again
            if is_lost_connection(error):
                await self._availability.check()
            return Released("its message is gone, and PostgreSQL can't be asked", OFFER_AGAIN)
        return (
            Released("its message is gone; the sweep sends it again", OFFER_AGAIN)
            if known
            else Dead(describe(JobExpired("job expired")))
        )


_IS_KNOWN = text("""
select exists (select from worker.outbox where id = :id)
    or exists (select from worker.run where id = :id and finished_at is null)
""")


class _Watch:
    """An observation that also remembers which attempt it is."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self.failures: int | None = None

    @property
    def attempt(self) -> int:
        return (self.failures or 0) + 1

    def begun(self, attempt: int) -> None:
        self.failures = attempt - 1
        self._observation.begun(attempt)

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        self._observation.ended(outcome, error)


def _identity(delivery: Delivery, message: Message | Unreadable) -> ledger.Identity:
    if isinstance(message, Unreadable):
        return ledger.Identity(delivery.job_id, message.enqueued_ms, UNREADABLE_NAME, delivery.queue, from_outbox=False)
    return ledger.Identity(delivery.job_id, message.enqueued_ms, message.name, delivery.queue, message.from_outbox)
