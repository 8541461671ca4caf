"""The ledger: the durable memory of one job. Its row lock lets one executor in, its status says that it is done once.

Every function here is one statement on the attempt's own connection, in the attempt's own transaction.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import JsonValue
from pydantic_core import to_json
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import Permanent

MAX_RESULT_BYTES = 64 * 1024

Status = Literal["waiting", "retrying", "snoozed", "yielded", "completed", "dead", "cancelled", "discarded"]
FINAL = frozenset({"completed", "dead", "cancelled", "discarded"})


@dataclass(frozen=True, slots=True)
class Identity:
    """One job: the same id enqueued at another time is another job."""

    job_id: str
    enqueued_ms: int
    name: str
    queue: str
    from_outbox: bool


@dataclass(frozen=True, slots=True)
class Begun:
    """The run is locked by this transaction and may go on."""

    failures: int
    cursor: JsonValue
    counts: Mapping[str, JsonValue]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is final, or was and has been pruned (status None)."""

    status: str | None
    result: JsonValue = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NotDue:
    """It backs off or snoozes for this much longer."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Limits:
    """What PostgreSQL holds the attempt's transaction to. Zero: no limit."""

    statement: timedelta | None
    lock: timedelta | None
    transaction: timedelta


# A delivery from the outbox that has no outbox row is admitted only to a run that exists: it was final and was pruned,
# or the message is an old snapshot's. The limits are set once the row is locked: the wait for it has the connection's
# own lock_timeout, the handler's statements have the handler's.
_BEGIN = """
with admitted as (
    select where not :from_outbox
        or exists (select from worker.outbox where id = :id and enqueued_ms = :ms)
        or exists (select from worker.run where id = :id and enqueued_ms = :ms)
), locked as (
    insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox)
    select :id, :ms, :name, :queue, 'waiting', :from_outbox from admitted
    on conflict (id, enqueued_ms) do update set name = run.name
    returning status, attempt, cursor, result, error, next_at, created_at
)
select status, attempt, cursor, result, error, created_at, next_at - clock_timestamp() as wait,
    set_config('statement_timeout', :statement_ms, true),
    set_config('lock_timeout', :lock_ms, true),
    set_config('{transaction_setting}', :transaction_ms, true)
from locked
"""
# transaction_timeout came with PostgreSQL 17. Before it, an idle transaction of a stopped worker is what must end.
_BEGIN_17 = text(_BEGIN.format(transaction_setting="transaction_timeout"))
_BEGIN_15 = text(_BEGIN.format(transaction_setting="idle_in_transaction_session_timeout"))

# A row that coalesces may share its identity with a younger one that waits unsent: only the sent one is this job's.
_TAKE_ROW = """
delete from worker.outbox where id = :id and enqueued_ms = :ms and (sent_epoch is not null or not coalesces)
"""

_COMPLETE = text(f"""
with taken as ({_TAKE_ROW})
update worker.run set status = 'completed', result = cast(:result as jsonb), attempt = :failures, next_at = null,
    error = null, finished_at = clock_timestamp()
where id = :id and enqueued_ms = :ms
""")

_ADVANCE = text("""
update worker.run set status = 'yielded', cursor = cast(:cursor as jsonb), result = cast(:result as jsonb), attempt = 0,
    done = done + :done, total = coalesce(:total, total), next_at = null, error = null
where id = :id and enqueued_ms = :ms
""")

# Compare-and-set: a run that is final, or whose attempt somebody else counted, stays as it is. A job from the outbox
# is written only while its row stands.
_MOVE = text("""
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt, next_at, error, message, finished_at)
select :id, :ms, :name, :queue, :status, :from_outbox, :attempt,
    case when not :final then clock_timestamp() + :delay end, :error, :message, case when :final then clock_timestamp() end
where not :from_outbox or exists (select from worker.outbox where id = :id and enqueued_ms = :ms)
on conflict (id, enqueued_ms) do update set status = excluded.status, attempt = excluded.attempt,
    next_at = excluded.next_at, error = excluded.error, message = excluded.message, finished_at = excluded.finished_at
where run.attempt = :failures and run.finished_at is null
""")

_FAILURES = text("select attempt from worker.run where id = :id and enqueued_ms = :ms for update")
_LOOK = text("select status, result, error from worker.run where id = :id and enqueued_ms = :ms")

_NOTE_FAILURE = text("""
insert into worker.attempt (id, enqueued_ms, attempt, error, traceback, worker)
values (:id, :ms, :attempt, :error, :traceback, :worker)
""")

# once=False: there is no run, unless the job failed or was snoozed before.
_CLOSE_UNKEPT = text(f"""
with taken as ({_TAKE_ROW})
update worker.run set status = 'completed', next_at = null, error = null, finished_at = clock_timestamp()
where id = :id and enqueued_ms = :ms and finished_at is null
""")

# The row of a direct job: from here on it is as safe as any. It counts as sent, since Redis has the message.
_ADOPT = text("""
insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, sent_at)
select :id, :ms, :name, :queue, :message, epoch, now() from worker.relay_state
where not exists (select from worker.outbox where id = :id and enqueued_ms = :ms)
""")


def _key(run: Identity) -> dict[str, object]:
    return {"id": run.job_id, "ms": run.enqueued_ms}


def _ms(limit: timedelta | None) -> str:
    return str(max(1, int(limit.total_seconds() * 1000))) if limit else "0"


async def begin(connection: AsyncConnection, run: Identity, limits: Limits) -> Begun | Ended | NotDue:
    """Insert or lock the run, and set the transaction's limits.

    Raises DBAPIError with SQLSTATE 55P03 where another transaction holds the run for longer than the lock timeout.
    """
    recent = (connection.dialect.server_version_info or (0,)) >= (17,)
    statement = _BEGIN_17 if recent else _BEGIN_15
    found = await connection.execute(
        statement,
        {
            **_key(run),
            "name": run.name,
            "queue": run.queue,
            "from_outbox": run.from_outbox,
            "statement_ms": _ms(limits.statement),
            "lock_ms": _ms(limits.lock),
            "transaction_ms": _ms(limits.transaction),
        },
    )
    row = found.one_or_none()
    if row is None:
        return Ended(None)
    if row.status in FINAL:
        return Ended(row.status, row.result, row.error)
    if row.wait is not None and row.wait > timedelta(0):
        return NotDue(row.wait)
    return Begun(row.attempt, row.cursor, row.result or {}, row.created_at)


async def complete(connection: AsyncConnection, run: Identity, result: JsonValue, failures: int) -> None:
    """Mark the run done and take its outbox row away. Raises Permanent for a result that can't be kept."""
    await connection.execute(_COMPLETE, {**_key(run), "result": as_jsonb(result, "result"), "failures": failures})


async def close_unkept(connection: AsyncConnection, run: Identity) -> None:
    """End a job of a handler with once=False, whose success leaves no run."""
    await connection.execute(_CLOSE_UNKEPT, _key(run))


async def take_row(connection: AsyncConnection, run: Identity) -> None:
    """Take away the outbox row of a job that is final already."""
    await connection.execute(text(_TAKE_ROW), _key(run))


async def advance(
    connection: AsyncConnection,
    run: Identity,
    *,
    cursor: JsonValue,
    done: int,
    total: int | None,
    counts: JsonValue,
) -> None:
    """Move the cursor behind the chunk that commits with it."""
    await connection.execute(
        _ADVANCE,
        {
            **_key(run),
            "cursor": as_jsonb(cursor, "cursor"),
            "result": as_jsonb(counts, "counts"),
            "done": done,
            "total": total,
        },
    )


async def adopt(connection: AsyncConnection, run: Identity, message: bytes) -> None:
    """Write the outbox row of a direct job that isn't final after its first attempt."""
    await connection.execute(_ADOPT, {**_key(run), "name": run.name, "queue": run.queue, "message": message})


@dataclass(frozen=True, slots=True)
class Move:
    """Where a run goes when its attempt did not commit."""

    status: Status
    error: str
    delay: timedelta = timedelta(0)
    counts: bool = False
    """Whether it is a failure, and burns an attempt."""
    traceback: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self.status in FINAL


async def failures(connection: AsyncConnection, run: Identity) -> int:
    """How many failures the run counts; locks it, where it exists."""
    return (await connection.execute(_FAILURES, _key(run))).scalar_one_or_none() or 0


async def move(connection: AsyncConnection, run: Identity, to: Move, *, seen: int, message: bytes, worker: str) -> bool:
    """Write `to`, in a transaction of its own after the rollback.

    `seen`: the failures that the attempt saw when it began. False: somebody else has moved the run on since.
    """
    attempt = seen + to.counts
    moved = await connection.execute(
        _MOVE,
        {
            **_key(run),
            "name": run.name,
            "queue": run.queue,
            "from_outbox": run.from_outbox,
            "status": to.status,
            "attempt": attempt,
            "failures": seen,
            "delay": to.delay,
            "error": as_text(to.error),
            "message": message if to.is_final else None,
            "final": to.is_final,
        },
    )
    if moved.rowcount == 0:
        return False
    if to.counts:
        note = {"attempt": attempt, "error": as_text(to.error), "traceback": as_text(to.traceback), "worker": worker}
        await connection.execute(_NOTE_FAILURE, {**_key(run), **note})
    if to.is_final:
        await take_row(connection, run)
    elif not run.from_outbox:
        await adopt(connection, run, message)
    return True


async def look(connection: AsyncConnection, run: Identity) -> Ended | None:
    """How the run ended, after `move` has met one that it may not touch. None: it hasn't."""
    row = (await connection.execute(_LOOK, _key(run))).one_or_none()
    if row is None:
        return Ended(None)
    return Ended(row.status, row.result, row.error) if row.status in FINAL else None


def as_jsonb(value: JsonValue, what: str) -> str:
    """`value` as PostgreSQL's jsonb takes it.

    Raises Permanent where it is no JSON, over 64 KiB, or holds NUL or a lone surrogate.
    """
    try:
        encoded = to_json(value, inf_nan_mode="null")
    except ValueError as error:
        raise Permanent(
            f"The handler's {what} can't be written as JSON ({type(error).__name__}); return plain values."
        ) from None
    if len(encoded) > MAX_RESULT_BYTES:
        raise Permanent(
            f"The handler's {what} has {len(encoded):,} bytes; the limit is {MAX_RESULT_BYTES:,}: store it and return its key."
        )
    if b"\\u0000" in encoded:
        raise Permanent(f"The handler's {what} holds a NUL character, which PostgreSQL's jsonb refuses; take it out.")
    return encoded.decode()


def as_text(value: str) -> str:
    """`value` as PostgreSQL's text takes it: NUL and lone surrogates escaped."""
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run that the calling handler carries out."""

    job_id: str
    """The idempotency key for side effects outside the database."""
    enqueued_ms: int
    enqueued_at: datetime
    """When the job was enqueued; for a `job_id` its caller chose, when its run was first begun."""
    attempt: int
    """From 1."""
    name: str
    queue: str


_current: ContextVar[CurrentRun] = ContextVar("current_run")


def current_run() -> CurrentRun:
    """The run of the calling handler. Raises RuntimeError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError(
            "current_run() was called outside a handler; call it in one, or use worker.testing."
        ) from None


@contextmanager
def running(run: CurrentRun) -> Generator[None]:
    """Make `run` the current one."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def moment(enqueued_ms: int) -> datetime:
    """An enqueue time as a datetime."""
    return datetime.fromtimestamp(enqueued_ms / 1000, UTC)


def current_of(run: Identity, begun: Begun) -> CurrentRun:
    """What the handler is told of its run."""
    enqueued_at = moment(run.enqueued_ms) if run.enqueued_ms > 0 else begun.created_at
    return CurrentRun(run.job_id, run.enqueued_ms, enqueued_at, begun.failures + 1, run.name, run.queue)
