"""One delivery -> one Outcome. The only try/except about jobs."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import assert_never

from sqlalchemy.ext.asyncio import AsyncEngine

from worker import run as ledger
from worker.availability import Availability
from worker.delivery import Delivery, Report
from worker.errors import Cancel, InvalidPayload, JobExpired, Snooze, UnknownJob
from worker.faults import FateUnknown, is_conflict, is_expected, is_lost_connection
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
from worker.setback import Decision, Setbacks, cancelled, duplicate_of, failed, snoozed
from worker.shield import answer_cancellation, is_cancelled, to_its_end
from worker.stored import as_text
from worker.transaction import LedgerBusy, Transactor, Work
from worker.wire import UNREADABLE_NAME, Message, Unreadable, decode, restamp

IMMEDIATE_RETRIES = 3
"""For conflicts and lost connections, before they count as a failure."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How a delivery was settled in PostgreSQL."""

    outcome: Outcome
    error: BaseException | None = None
    attempt: int = 1
    adopted: bool = False
    """Whether a direct job has an outbox row now."""


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
        self._transactor = Transactor(engine)
        self._setbacks = Setbacks(engine, availability, worker)
        self._unknown: set[str] = set()

    @property
    def handlers(self) -> HandlerTable:
        """The jobs that this worker knows, by name."""
        return self._handlers

    async def execute(self, delivery: Delivery) -> Report:
        """Carry out one delivery. Never raises for a job's sake; the outcome says what came of it."""
        raw = delivery.message
        if raw is None:
            return Report(await self._without_message(delivery.job_id))
        message = decode(raw)
        if isinstance(message, Message) and message.name not in self._handlers:
            return Report(self._of_unknown_job(message.name), message)
        started_ms = _now_ms()
        with self._observer.observe(_subject(delivery, message)) as observation:
            try:
                settled = await self._settle(delivery, raw, message, observation)
            except Exception as fault:  # noqa: BLE001 - a fault of the runtime: the job stays, and somebody is told
                self._observer.fault("executor", fault)
                settled = Settled(Released("the runtime failed", OFFER_AGAIN))
            answer_cancellation()
            observation.ended(settled.outcome, settled.error)
        readable = message if isinstance(message, Message) else None
        adopted = restamp(raw, enqueued_ms=message.enqueued_ms) if settled.adopted else None
        return Report(settled.outcome, readable, settled.attempt, started_ms, _now_ms(), adopted)

    async def _settle(
        self, delivery: Delivery, raw: bytes, message: Message | Unreadable, observation: Observation
    ) -> Settled:
        """Read the message, and carry out what it asks."""
        run, retry = _identity(delivery, message), RetryPolicy()
        if delivery.hold.is_aborted():
            return Settled(await self._record(run, raw, None, cancelled(Cancelled("aborted before it began"))))
        try:
            if isinstance(message, Unreadable):
                raise InvalidPayload(f"The message can't be read: {message.reason}.")  # noqa: TRY301 - as the next one
            handler = self._handlers[message.name]
            retry = handler.retry
            job = handler.job.from_payload(message.payload)
        except InvalidPayload as error:
            return Settled(await self._record(run, raw, None, failed(error, retry)), error)
        return await self._carry_out(Work(run, job, handler, delivery, raw), observation)

    async def _carry_out(self, work: Work, observation: Observation) -> Settled:
        """Transaction after transaction: the chunks of one delivery, and the immediate retries of each."""
        direct, hold = not work.run.from_outbox, work.delivery.hold
        seen: int | None = None
        again, fate_unknown = 0, False

        def begun(failures: int) -> None:
            nonlocal seen
            seen = failures
            observation.begun(failures + 1)

        def settled(outcome: Outcome, error: BaseException | None = None) -> Settled:
            adopted = direct and (work.run.from_outbox or isinstance(outcome, Yielded | Snoozed | Retrying))
            return Settled(outcome, error, (seen or 0) + 1, adopted)

        while True:
            try:
                done = await self._transactor.carry_out(work, begun)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a handler raises
                outcome = await self._judge(work, error, seen, again)
                if outcome is not None:
                    return settled(outcome, error)
                again, fate_unknown = again + 1, fate_unknown or isinstance(error, FateUnknown)
                continue
            match done:
                case Yielded():
                    # The chunk has made the job the outbox's, and its failures count anew.
                    work, seen = replace(work, run=replace(work.run, from_outbox=True)), None
                    again, fate_unknown = 0, False
                    if hold.is_aborted():
                        return settled(await self._record(work.run, work.message, None, _ABORTED))
                    if hold.is_stopping() or is_cancelled():
                        return settled(done)
                case Completed():
                    return settled(done)
                case ledger.NotDue():
                    return settled(Released("it isn't due", done.delay))
                case ledger.Ended():
                    ours = fate_unknown and done.status == "completed"
                    return settled(Completed(done.result) if ours else duplicate_of(done))
                case _:
                    assert_never(done)

    async def _judge(self, work: Work, error: BaseException, seen: int | None, again: int) -> Outcome | None:
        """What a transaction that raised comes to. None: run it again at once, with nothing counted."""
        if work.delivery.hold.is_aborted():
            return await self._record(work.run, work.message, seen, _ABORTED)
        # Once the worker stops, whatever a cancelled handler raises is the cancellation's. (A count of cancellations
        # alone proves nothing: in Python 3.11 a TaskGroup that failed leaves one behind.)
        if is_cancelled() and (isinstance(error, asyncio.CancelledError) or work.delivery.hold.is_stopping()):
            return Released("the worker stops")
        match error:
            case Snooze():
                decision = snoozed(Snoozed(error.delay), error)
            case Cancel():
                decision = cancelled(Cancelled(error.reason))
            case LedgerBusy():
                return None if error.is_conflict and again < IMMEDIATE_RETRIES else Released(str(error), BUSY)
            case _:
                lost = is_lost_connection(error)
                if lost and not await to_its_end(self._availability.check()):
                    # Nothing counts. Where a commit was under way, the next begin reads its fate under the run's lock.
                    return Released("PostgreSQL is away", BUSY)
                if (lost or is_conflict(error)) and again < IMMEDIATE_RETRIES:
                    return None
                decision = failed(error, work.handler.retry)
        # Of a handler that keeps no run the attempt saw only what Redis counts; the ledger knows.
        return await self._record(work.run, work.message, seen if keeps_run(work.handler) else None, decision)

    async def _record(self, run: ledger.Identity, message: bytes, seen: int | None, decision: Decision) -> Outcome:
        return await to_its_end(self._setbacks.record(run, message, seen, decision))

    def _of_unknown_job(self, name: str) -> Released:
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
                if await ledger.is_known(connection, as_text(job_id)):
                    return Released("its message is gone; the sweep sends it again", OFFER_AGAIN)
        except Exception as error:  # noqa: BLE001 - not known now; it is offered again
            if is_lost_connection(error):
                await self._availability.check()
            elif not is_expected(error):
                self._observer.fault("executor", error)
            return Released("its message is gone, and PostgreSQL can't be asked", OFFER_AGAIN)
        return Dead(describe(JobExpired("job expired")))


_ABORTED = cancelled(Cancelled("aborted"))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _subject(delivery: Delivery, message: Message | Unreadable) -> Subject:
    latency_ms = max(0, delivery.delivered_ms - delivery.due_ms)
    if isinstance(message, Unreadable):
        return Subject(delivery.job_id, UNREADABLE_NAME, delivery.queue, message.enqueued_ms, latency_ms)
    return Subject(
        delivery.job_id,
        message.name,
        delivery.queue,
        message.enqueued_ms,
        latency_ms,
        dict(message.headers),
        message.payload,
    )


def _identity(delivery: Delivery, message: Message | Unreadable) -> ledger.Identity:
    # An id from elsewhere may hold what PostgreSQL's text can't.
    job_id = as_text(delivery.job_id)
    if isinstance(message, Unreadable):
        return ledger.Identity(job_id, message.enqueued_ms, UNREADABLE_NAME, delivery.queue, from_outbox=False)
    return ledger.Identity(job_id, message.enqueued_ms, message.name, delivery.queue, message.from_outbox)
