"""The handler, called: in its session, as its run, within its timeout. Whatever it raises is raised."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar, cast

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from worker.chunk import Chunk, Memory, Step
from worker.deadline import Deadlines
from worker.delivery import Delivery
from worker.errors import JobTimeout, Permanent
from worker.flushing import flush_all
from worker.guard import Guard
from worker.handler import AnyHandler, BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.ledger import Begun, Identity, Timeouts
from worker.partitions import Split
from worker.run import CurrentRun, Tell, current, current_of
from worker.stored import as_text
from worker.wire import Message, Unreadable

T = TypeVar("T")

BEYOND = timedelta(seconds=30)
"""How much longer than its handler a transaction may last before PostgreSQL ends it."""


@dataclass(slots=True)
class Work:
    """A job, and all that its transactions need."""

    delivery: Delivery
    raw: bytes
    """The message as it stands in Redis; for the outbox row of a direct job that has to wait."""
    message: Message
    handler: AnyHandler
    job: Job | None
    """As it was read first. None: a call has it, and `take_job` reads it anew for the next."""
    memory: Memory = field(default_factory=Memory)
    """Of a chunked job."""
    identity: Identity | None = None
    """None: it wasn't asked for its run yet, as most jobs aren't that keep none."""

    @property
    def run(self) -> Identity:
        """Its run in the ledger."""
        if self.identity is None:
            self.identity = identity_of(self.delivery, self.message)
        return self.identity

    def take_job(self) -> Job:
        """The job as it was enqueued, for one call of its handler.

        It is frozen, but its lists and dicts aren't: an earlier call, whose transaction was rolled back, may have
        worked them off. Raises InvalidPayload where it can't be read a second time.
        """
        job, self.job = self.job, None
        if job is not None:
            return job
        again: Job = self.handler.job.from_payload(self.message.payload)
        return again


def identity_of(delivery: Delivery, message: Message | Unreadable) -> Identity:
    """The run that a delivery is of."""
    # An id from elsewhere may hold what PostgreSQL's text can't.
    job_id = as_text(delivery.job_id)
    return Identity(job_id, message.enqueued_ms, message.name, delivery.queue, message.from_outbox)


def timeouts_of(handler: AnyHandler) -> Timeouts:
    """What PostgreSQL holds its transactions to."""
    return _timeouts(handler.statement_timeout, handler.lock_timeout, handler.timeout)


@cache
def _timeouts(statement: timedelta | None, lock: timedelta | None, timeout: timedelta) -> Timeouts:
    return Timeouts(statement, lock, timeout + BEYOND)


def call(
    work: Work, begun: Begun, session: AsyncSession, guard: Guard, deadlines: Deadlines
) -> Coroutine[Any, Any, object]:
    """What the handler returns, with all flushed that it left in its session.

    Raises JobTimeout, SessionMisuse, and whatever the handler raises.
    """
    handler = work.handler
    tell: Tell = partial(current_of, work.run, begun)
    start: Callable[[], Awaitable[object]]
    if isinstance(handler, Handler):
        start = partial(ask, handler, work.take_job(), session)
    elif isinstance(handler, ChunkedHandler):
        start = partial(_run_chunk, handler, work, begun, session)
    else:
        start = partial(_run_one, handler, work, session)
        tell = partial(_currents, (work,), (begun,))
    return within_timeout(handler, tell, start, session, guard=guard, deadlines=deadlines)


def call_many(
    works: Sequence[Work], begun: Sequence[Begun], session: AsyncSession, guard: Guard, deadlines: Deadlines
) -> Coroutine[Any, Any, list[object]]:
    """The results of one call for many jobs of one batch handler, in their order. Raises as `call` does."""
    handler = cast("BatchHandler[Any]", works[0].handler)
    start = partial(run_batch, handler, [work.take_job() for work in works], session)
    return within_timeout(handler, partial(_currents, works, begun), start, session, guard=guard, deadlines=deadlines)


def _currents(works: Sequence[Work], begun: Sequence[Begun]) -> tuple[CurrentRun, ...]:
    return tuple(current_of(work.run, one) for work, one in zip(works, begun, strict=True))


async def within_timeout(
    handler: AnyHandler,
    tell: Tell,
    start: Callable[[], Awaitable[T]],
    session: AsyncSession,
    *,
    guard: Guard,
    deadlines: Deadlines,
) -> T:
    """What `start` returns, and `call` would."""
    timeout, hung = handler.timeout, None
    deadline = deadlines.within(guard.owner, timeout.total_seconds())
    told, guard.is_watching = current.set(tell), True  # a context manager for each takes a microsecond
    try:
        with deadline:
            returned = await start()
            guard.is_watching = False
            if session.in_transaction():
                await flush_all(session)
        if not deadline.has_expired:
            return returned
    except asyncio.CancelledError as error:
        if not deadline.has_expired:
            raise
        hung = error
    except GeneratorExit as error:
        if asyncio.current_task() is not guard.owner:  # this coroutine is being closed
            raise
        name = handler.job.job_name
        raise RuntimeError(f"The handler of {name} raised GeneratorExit, which ends generators.") from error
    finally:
        current.reset(told)
        guard.is_watching = False
        if guard.misuse is not None:
            raise guard.misuse
    # The handler may have swallowed it, too.
    name = handler.job.job_name
    raise JobTimeout(f"{name} ran longer than its timeout of {timeout}; raise it or do less.") from hung


async def _run_one(handler: BatchHandler[Any], work: Work, session: AsyncSession) -> object:
    """A job that has no company."""
    (result,) = await run_batch(handler, [work.take_job()], session)
    return result


async def _run_chunk(
    handler: ChunkedHandler[Any, Any], work: Work, begun: Begun, session: AsyncSession
) -> Step[Any] | Split:
    """The next chunk, from where the run says; of a job with partitions the bounds between them first."""
    progress = begun.progress
    assert progress is not None, "a chunked job's progress is read when it begins"  # noqa: S101 - a fault of the runtime
    if handler.split is not None and progress.bounds is None and progress.chunks == 0:
        return Split.at(await handler.split(work.take_job(), session, handler.partitions), handler)

    def read(key: JsonValue) -> Any:
        return None if key is None else handler.codec.validate_json(json.dumps(key))

    lower, upper = progress.bounds or (None, None)
    cursor, size = read(progress.cursor), progress.size
    chunk = Chunk(cursor, size, read(lower), read(upper), work.memory)
    step: Step[Any] = await ask(handler, work.take_job(), session, chunk)
    return step


def ask(handler: AnyHandler, *given: Any) -> Awaitable[Any]:
    """What the handler's function returns, to be awaited. Raises Permanent where that can't be."""
    run: Callable[..., Any] = handler.run
    asked = run(*given)
    if not hasattr(asked, "__await__"):
        raise Permanent(f"The handler of {handler.job.job_name} is no coroutine function; write async def.")
    awaitable: Awaitable[Any] = asked
    return awaitable


async def run_batch(handler: BatchHandler[Any], jobs: Sequence[Job], session: AsyncSession) -> list[object]:
    """A result for each job, in their order. Raises Permanent where the handler returns anything else."""
    returned: Any = await ask(handler, jobs, session)
    if returned is None:
        return [None] * len(jobs)
    if isinstance(returned, Sequence) and not isinstance(returned, str | bytes):
        results = list(cast("Sequence[object]", returned))
        if len(results) == len(jobs):
            return results
        told = f"{len(results)} results"
    else:
        told = type(returned).__name__
    raise Permanent(
        f"The batch handler of {handler.job.job_name} returned {told} for {len(jobs)} jobs; "
        "return a sequence with a result for each, in their order, or None."
    )
