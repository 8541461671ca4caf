"""One delivery -> one Outcome: the message is read, its handler found, and the attempt made."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from worker import ledger
from worker.attempt import Attempt, Crew, Settled
from worker.availability import Availability
from worker.batch import Batches
from worker.call import Work, identity_of
from worker.delivery import Delivery, Report
from worker.errors import InvalidPayload, JobExpired, UnknownJob
from worker.faults import is_expected, is_lost_connection
from worker.guard import Guard
from worker.handler import BatchHandler, HandlerTable, keeps_run
from worker.outcome import OFFER_AGAIN, Cancelled, Dead, Outcome, Released, describe
from worker.pressure import Ceiling
from worker.reporting.observer import Observation, Observer, Subject
from worker.retry import RetryPolicy
from worker.setback import Decision, cancelled, failed
from worker.shield import answer_cancellation, to_its_end
from worker.stored import as_text
from worker.wire import UNREADABLE_NAME, Message, Unreadable, decode, restamp

DEFAULT_RETRY = RetryPolicy()
"""Of a message that no handler's policy is known for."""
MAX_UNKNOWN = 1_000
"""Names that are told of. Whoever may enqueue chooses them."""


class Executor:
    """Runs deliveries of one app against one database."""

    def __init__(
        self,
        handlers: HandlerTable,
        engine: AsyncEngine,
        observer: Observer,
        availability: Availability,
        worker: str,
        *,
        ceiling: Ceiling | None = None,
    ) -> None:
        """`worker` names this process in the ledger. Above `ceiling` chunked jobs wait.

        Without one it is the default's.
        """
        self._handlers = handlers
        self._engine = engine
        self._observer = observer
        self._availability = availability
        self._crew = Crew(engine, availability, worker, ceiling or Ceiling())
        self._batches = Batches(self._crew)
        self._unknown: set[str] = set()

    @property
    def handlers(self) -> HandlerTable:
        """The jobs that this worker knows, by name."""
        return self._handlers

    async def execute(self, delivery: Delivery) -> Report:
        """Carry out one delivery. Never raises for a job's sake; the outcome says what came of it."""
        raw = delivery.message
        if raw is None:
            return Report(await self._without_message(delivery))
        message = decode(raw)
        if isinstance(message, Message) and message.name not in self._handlers:
            return Report(self._of_unknown_job(message.name), message)
        task: Any = asyncio.current_task()
        task.set_name(message.name)
        started_ms = _now_ms()
        with self._observer.observe(subject_of(delivery, message)) as observation:
            try:
                settled = await self._settling(delivery, raw, message, observation, task)
            except Exception as fault:  # noqa: BLE001 - a fault of the runtime: the job stays, and somebody is told
                self._observer.fault("executor", fault)
                settled = Settled(Released("the runtime failed", OFFER_AGAIN))
            if task.cancelling():
                answer_cancellation(task)
            observation.ended(settled.outcome, settled.error)
        if isinstance(message, Unreadable):
            return Report(settled.outcome, None, settled.attempt, started_ms, _now_ms())
        adopted = restamp(raw, enqueued_ms=message.enqueued_ms) if settled.adopted else None
        return Report(
            settled.outcome, message, settled.attempt, started_ms, _now_ms(), adopted, has_begun=settled.has_begun
        )

    def _settling(
        self,
        delivery: Delivery,
        raw: bytes,
        message: Message | Unreadable,
        observation: Observation,
        task: asyncio.Task[Any],
    ) -> Coroutine[Any, Any, Settled]:
        """The attempt that the message asks for, or what is recorded instead."""
        retry = DEFAULT_RETRY
        try:
            if isinstance(message, Unreadable):
                raise InvalidPayload(f"The message can't be read: {message.reason}.")  # noqa: TRY301 - as the next one
            handler = self._handlers[message.name]
            retry = handler.retry
            job = handler.job.from_payload(message.payload)
        except InvalidPayload as error:
            return self._record(delivery, message, raw, failed(error, retry), error)
        if delivery.hold.is_aborted():
            return self._record(delivery, message, raw, cancelled(Cancelled("aborted before it began")))
        work = Work(delivery, raw, message, handler, job)
        if not keeps_run(handler):
            return self._unkept(work, observation, task)
        if isinstance(handler, BatchHandler):
            return self._batches.settle(work, handler, observation)
        return Attempt(work, self._crew, observation).settle()

    async def _unkept(self, work: Work, observation: Observation, task: asyncio.Task[Any]) -> Settled:
        """The attempt of a handler with once=False. Most succeed at once, and need nothing of an Attempt."""
        attempt = work.delivery.failures + 1
        try:
            work.delivery.hold.begins(work.handler.timeout)
            observation.begun(attempt)
            done = await self._crew.unkept.carry_out(work, Guard(task))
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 - whatever a handler raises
            again = Attempt(work, self._crew, observation)
            settled = await again.after_first(raised)
        else:
            return Settled(done, None, attempt)
        # Not in `except`: Python would tell of what this call raises as if the first one's error had led to it.
        return settled or await again.settle()

    async def _record(
        self,
        delivery: Delivery,
        message: Message | Unreadable,
        raw: bytes,
        decision: Decision,
        error: InvalidPayload | None = None,
    ) -> Settled:
        run = identity_of(delivery, message)
        return Settled(await to_its_end(self._crew.setbacks.record(run, raw, None, decision)), error)

    def _of_unknown_job(self, name: str) -> Released:
        """Leave it for a worker that knows it. One warning a name."""
        error = UnknownJob(name)
        if name not in self._unknown and len(self._unknown) < MAX_UNKNOWN:
            self._unknown.add(name)
            self._observer.fault("executor", error)
        return Released(describe(error), OFFER_AGAIN, others_first=True)

    async def _without_message(self, delivery: Delivery) -> Outcome:
        """The id stands in the queue but its message is gone: the sweep brings it back if PostgreSQL knows the job."""
        try:
            async with self._engine.connect() as connection:
                if await ledger.is_known(connection, as_text(delivery.job_id)):
                    return Released("its message is gone; the sweep sends it again", OFFER_AGAIN)
        except Exception as error:  # noqa: BLE001 - not known now; it is offered again
            if is_lost_connection(error):
                await self._availability.check()
            elif not is_expected(error):
                self._observer.fault("executor", error)
            return Released("its message is gone, and PostgreSQL can't be asked", OFFER_AGAIN)
        dead = Dead(describe(JobExpired("job expired")))
        with self._observer.observe(Subject(delivery.job_id, UNREADABLE_NAME, delivery.queue, 0, 0)) as observation:
            observation.ended(dead, None)
        return dead


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def subject_of(delivery: Delivery, message: Message | Unreadable) -> Subject:
    """What observers are told of a delivery."""
    latency_ms = max(0, delivery.delivered_ms - delivery.due_ms)
    return Subject(
        delivery.job_id,
        message.name,
        delivery.queue,
        message.enqueued_ms,
        latency_ms,
        message.headers,
        message.payload,
    )
