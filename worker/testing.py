"""The kit for people who write jobs: perform one, see what was enqueued, run it all.

Nothing here needs Redis or a running worker. See tests/guide/ for how each is used.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import JsonValue
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from uuid_utils import uuid7

from worker import lanes
from worker.app import App
from worker.availability import Availability
from worker.call import ask, run_batch
from worker.chunk import Chunk, Memory, Step
from worker.delivery import Delivery, NoHold
from worker.errors import UnknownJob
from worker.executor import Executor
from worker.handler import AnyHandler, BatchHandler, ChunkedHandler, HandlerTable
from worker.job import Job
from worker.models import Outbox, Run
from worker.outcome import Outcome, Released
from worker.progress import key_behind
from worker.rehearsing import held_to_rules
from worker.reporting.observer import Observers
from worker.run import CurrentRun, current
from worker.stored import as_jsonb
from worker.wire import Message, decode, restamp

J = TypeVar("J", bound=Job)


async def perform(app: App, job: Job, session: AsyncSession) -> Any:
    """Run `job`'s handler in your own session and return its result; you commit or roll back.

    Payload, result and cursor make the round trip through JSON as they do in a worker, so what would not survive it
    fails here. A chunked job is run chunk after chunk, without partitions, and a batch handler gets a batch of one.
    Whatever the handler raises is raised, and so is what a worker would refuse of it: a commit, a second task in its
    session, a database error that it swallowed.
    """
    if job.job_name not in app.handlers:
        raise UnknownJob(job.job_name)
    handler = app.handlers[job.job_name]
    received = handler.job.from_payload(job.to_payload())
    if received != job:
        raise AssertionError(
            f"The payload of {job.job_name} changes on its way through JSON: {job!r} arrives as {received!r}."
        )
    now = datetime.now(UTC)
    run = CurrentRun(str(uuid7()), int(now.timestamp() * 1000), now, 1, job.job_name, job.job_queue)
    # What a handler keeps for its run (rejected rows) refers to it.
    identity = {"id": run.job_id, "enqueued_ms": run.enqueued_ms, "name": run.name, "queue": run.queue}
    await session.execute(insert(Run).values(**identity, status="waiting", from_outbox=False))
    told = current.set(lambda: (run,) if isinstance(handler, BatchHandler) else run)
    try:
        return await _result(handler, received, session)
    finally:
        current.reset(told)


async def _result(handler: AnyHandler, job: Job, session: AsyncSession) -> JsonValue:
    if isinstance(handler, ChunkedHandler):
        memory = Memory()
        try:
            return await _run_chunks(job, handler, session, memory)
        finally:
            memory.forget()
    async with held_to_rules(session):
        if isinstance(handler, BatchHandler):
            [result] = await run_batch(handler, [job], session)
        else:
            result = await ask(handler, job, session)
    stored: JsonValue = json.loads(as_jsonb(result, "result"))
    return stored


async def _run_chunks(job: J, handler: ChunkedHandler[J, Any], session: AsyncSession, memory: Memory) -> JsonValue:
    counts: dict[str, JsonValue] = {}
    cursor: Any = None
    before: JsonValue = None
    while True:
        async with held_to_rules(session):
            # As in a worker, where each chunk gets the job as it was enqueued.
            received = handler.job.from_payload(job.to_payload())
            step: Step[Any] = await ask(handler, received, session, Chunk(cursor, handler.size, memory=memory))
        counts = json.loads(as_jsonb(step.added_to(counts), "result"))
        key = key_behind(handler, step, before)
        if step.cursor is None:
            return counts
        cursor, before = handler.codec.validate_json(key), json.loads(key)


async def enqueued(session: AsyncSession, kind: type[J]) -> list[J]:
    """The jobs of one kind that this transaction enqueues, or that were committed and aren't final, oldest first."""
    await session.flush()
    rows = await session.scalars(select(Outbox).where(Outbox.name == kind.job_name).order_by(Outbox.seq))
    return [kind.from_payload(_message(row).payload) for row in rows]


def _message(row: Outbox) -> Message:
    message = decode(row.message)
    assert isinstance(message, Message), message.reason  # noqa: S101 - a kit for tests
    return message


async def drain(app: App, engine: AsyncEngine, *, limit: int = 1_000) -> list[tuple[Message, Outcome]]:
    """Run every committed job that is due, and those that they enqueue, and return what came of each delivery.

    They go through the real executor, one after another; those of a batch handler together. What fails or snoozes is
    left for a later call, however short its wait is drawn: a test sees one attempt of it. A job with partitions comes
    after them. Jobs of one key or `job_id` coalesce first, as the relay would have them.

    Raises AssertionError after `limit` deliveries: then jobs enqueue each other for ever.
    """
    passed: list[int] = []
    availability = Availability(engine)
    executor = Executor(_at_once(app.handlers), engine, Observers(), availability, "worker.testing")
    outcomes: list[tuple[Message, Outcome]] = []
    try:
        began = await _now(engine)
        while rows := await _next_due(engine, app.handlers, began, passed):
            if len(outcomes) >= limit:
                raise AssertionError(f"drain ran {limit} jobs and more are due; do they enqueue each other?")
            reports = await asyncio.gather(*(executor.execute(_delivery(row)) for row in rows))
            passed += [
                row.seq for row, report in zip(rows, reports, strict=True) if isinstance(report.outcome, Released)
            ]
            outcomes += [(_message(row), report.outcome) for row, report in zip(rows, reports, strict=True)]
    finally:
        await availability.close()
    return outcomes


def _delivery(row: Any) -> Delivery:
    now_ms = time.time_ns() // 1_000_000
    raw = restamp(row.message, enqueued_ms=row.enqueued_ms) if row.coalesces else row.message
    return Delivery(row.id, row.queue, raw, NoHold(), now_ms, now_ms)


def _at_once(handlers: HandlerTable) -> HandlerTable:
    """All that makes a batch is there at once, so nothing waits for more."""

    def at_once(handler: AnyHandler) -> AnyHandler:
        return replace(handler, linger=timedelta(0)) if isinstance(handler, BatchHandler) else handler

    return {name: at_once(handler) for name, handler in handlers.items()}


# A row counts as sent while it is run, as the relay would have it. What coalesces was marked before.
_NEXT_DUE = text("""
update worker.outbox set sent_epoch = 0, sent_at = now() where seq = (
    select seq from worker.outbox as row left join worker.run using (id, enqueued_ms)
    where row.due_at <= now() and coalesce(run.next_at <= :began, true) and row.name = any(:names)
        and (row.sent_epoch is not null or not row.coalesces) and row.seq <> all(:taken)
    order by run.partitions is not null, row.sent_epoch is null, row.seq limit 1
) returning seq, id, enqueued_ms, name, queue, message, coalesces
""")


async def _now(engine: AsyncEngine) -> datetime:
    """By PostgreSQL's clock."""
    async with engine.connect() as connection:
        now: datetime = (await connection.execute(text("select clock_timestamp()"))).scalar_one()
        return now


async def _next_due(engine: AsyncEngine, handlers: HandlerTable, began: datetime, passed: Sequence[int]) -> list[Any]:
    """The next job, with as many more as make a batch with it. None: an empty list. `passed` were put back before."""
    rows: list[Any] = []
    names, size = list(handlers), 1
    async with engine.begin() as connection:
        await lanes.rows(connection, lanes.MARK_COALESCING, epoch=0, refused=[])
        while len(rows) < size:
            given = {"names": names, "began": began, "taken": [*passed, *(row.seq for row in rows)]}
            row = (await connection.execute(_NEXT_DUE, given)).one_or_none()
            if row is None:
                break
            rows.append(row)
            handler = handlers[row.name]
            if isinstance(handler, BatchHandler):
                names, size = [handler.job.job_name, *handler.job.job_aliases], handler.max_size
    return rows
