"""The ledger: the durable memory of one job. Its row lock lets one executor in, its status says that it is done once.

Every function here is one statement on the attempt's own connection, in the attempt's own transaction. What an attempt
that failed leaves behind is in setback.py. `begin` and `complete`, which every attempt pays for, are sent by the driver
itself: through SQLAlchemy they took a fifth of an order job's time.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import JsonValue
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.driver import Driver
from worker.errors import TransactionEnded
from worker.pace import Progress
from worker.wire import restamp

RunStatus = Literal["waiting", "retrying", "snoozed", "yielded", "completed", "dead", "cancelled", "discarded"]
FINAL = frozenset({"completed", "dead", "cancelled", "discarded"})
PRECISION_S = 0.05
"""A run that was marked done when it began says so of this time; one that takes longer is marked again at its end."""

Ask: TypeAlias = Callable[..., Awaitable[Any]]
"""Given a statement and its arguments, its first row, or None: the driver's `fetchrow`."""


@dataclass(slots=True)
class Identity:
    """One job: the same id enqueued at another time is another job."""

    job_id: str
    enqueued_ms: int
    name: str
    queue: str
    from_outbox: bool

    @property
    def key(self) -> dict[str, object]:
        """The parameters that every statement of the ledger has."""
        return {"id": self.job_id, "ms": self.enqueued_ms}


@dataclass(slots=True)
class Begun:
    """The run is locked by this transaction and may go on."""

    failures: int
    created_at: datetime | None
    """None: no run is kept, and nobody has asked yet."""
    transaction: str
    """PostgreSQL's id of the transaction that holds the lock."""
    marked_at: float | None = None
    """time.monotonic() when the run was marked done, if it is already."""
    is_parted: bool = False
    """Whether it is one of a job's partitions, or the job that has them."""
    progress: Progress | None = None
    """Of a chunked job."""

    @property
    def seen(self) -> "Seen":
        """What tells whether the run has gone on since."""
        return Seen(self.failures, self.progress.chunks if self.progress else None)


class Seen(NamedTuple):
    """A run that somebody else has carried on meanwhile has other numbers than an attempt saw when it began."""

    failures: int
    chunks: int | None = None
    """None: its handler has no chunks, though before a deploy it may have had."""


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


class Timeouts(NamedTuple):
    """What PostgreSQL holds the attempt's transaction to."""

    statement: timedelta | None
    """None: what the role, the database or the server has been set to."""
    lock: timedelta | None
    """None: no limit. (What the role was set to has given way to the runtime's own when it connected.)"""
    transaction: timedelta


_IS_17 = "current_setting('server_version_num')::int >= 170000"


# transaction_timeout came with PostgreSQL 17. Before it, an idle transaction of a stopped worker is what must end.
# Either may be the role's own and shorter; one that runs already is set anew only from zero.
def timeout_columns(statement_ms: str, lock_ms: str, transaction_ms: str) -> str:
    """Five columns of a select; the arguments are placeholders."""
    return f"""
    set_config('statement_timeout', coalesce({statement_ms}, current_setting('statement_timeout')), true),
    set_config('lock_timeout', {lock_ms}, true),
    set_config('idle_in_transaction_session_timeout', {transaction_ms}, true),
    case when {_IS_17} then set_config('transaction_timeout', '0', true) end,
    case when {_IS_17} then set_config('transaction_timeout', {transaction_ms}, true) end
    """


_SET_TIMEOUTS = text(f"select {timeout_columns(':statement_ms', ':lock_ms', ':transaction_ms')}")

# A delivery from the outbox that has no outbox row is admitted only to a run that exists: it was final and was pruned,
# or the message is an old snapshot's. The timeouts are set once the row is locked: the wait for it has the
# connection's own lock_timeout, the handler's statements have the handler's.
#
# A direct job that has no run yet may be marked done at once ($9): that is undone unless the handler's work commits
# with it, and the mark needs no statement of its own (docs/adr/0016).
_BEGIN = f"""
with admitted as (
    select where not $5::boolean
        or exists (select from worker.outbox where id = $1::text and enqueued_ms = $2::bigint)
        or exists (select from worker.run where id = $1 and enqueued_ms = $2)
), locked as (
    insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, result, finished_at)
    select $1, $2, $3::text, $4::text, case when $9::boolean then 'completed' else 'waiting' end, $5,
        case when $9 then 'null'::jsonb end, case when $9 then clock_timestamp() end
    from admitted
    on conflict (id, enqueued_ms) do update set name = run.name
    returning status, attempt, result, error, next_at, created_at, $9 and xmax = 0 as is_marked,
        partitions is not null or parent_id is not null as is_parted
)
select status, attempt, case when not is_marked then result end, error, created_at,
    next_at - clock_timestamp() as wait, is_marked, pg_current_xact_id()::text as transaction,
    is_parted,
    {timeout_columns("$6", "$7", "$8")}
from locked
"""

# A row that coalesces may share its identity with a younger one that waits unsent: only the sent one is this job's.
IS_ITS_OWN = "(sent_epoch is not null or not coalesces)"
TAKE_ROW = f"delete from worker.outbox where id = :id and enqueued_ms = :ms and {IS_ITS_OWN}"

# A handler that ended its transaction by itself is in another one now, or in none.
_COMPLETE = f"""
with marked as (
    update worker.run set status = 'completed', result = $4::jsonb, next_at = null, error = null,
        finished_at = clock_timestamp()
    where id = $1::text and enqueued_ms = $2::bigint and pg_current_xact_id()::text = $3::text returning id
), taken as (
    delete from worker.outbox where id = $1 and enqueued_ms = $2 and {IS_ITS_OWN} and exists (select from marked)
)
select count(*) from marked
"""

# once=False: there is no run, unless the job failed or was snoozed before.
_CLOSE_UNKEPT = text(f"""
with taken as ({TAKE_ROW})
update worker.run set status = 'completed', next_at = null, error = null, finished_at = clock_timestamp()
where id = :id and enqueued_ms = :ms and finished_at is null
""")

# It counts as sent, since Redis has the message; but only one row of an id may, so with another it waits for its turn.
_ADOPT = text("""
insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, sent_at)
select :id, :ms, :name, :queue, :message,
    case when not exists (select from worker.outbox where id = :id and sent_epoch is not null) then epoch end, now()
from worker.relay_state where not exists (select from worker.outbox where id = :id and enqueued_ms = :ms)
""")

_IS_KNOWN = text("""
select exists (select from worker.outbox where id = :id)
    or exists (select from worker.run where id = :id and finished_at is null)
""")


async def begin(ask: Ask, run: Identity, timeouts: Timeouts, *, marks: bool) -> Begun | Ended | NotDue:
    """Insert or lock the run, and set the transaction's timeouts. `marks`: a new run is marked done at once.

    `ask` may begin the transaction, too. Raises asyncpg's error with SQLSTATE 55P03 where another transaction holds the
    run for longer than the lock timeout.
    """
    given = (run.job_id, run.enqueued_ms, run.name, run.queue, run.from_outbox, *milliseconds(timeouts).values(), marks)
    row = await ask(_BEGIN, *given)
    if row is None:
        return Ended(None)
    # Positions, which asyncpg's records give faster than names.
    status, failures, result, error, created_at, wait, is_marked, transaction, is_parted = row[:9]
    if status in FINAL and not is_marked:
        return Ended(status, result, error)
    if wait is not None and wait > timedelta(0):
        return NotDue(wait)
    marked_at = time.monotonic() if is_marked else None
    return Begun(failures, created_at, transaction, marked_at, is_parted)


def set_timeouts(connection: Connection, timeouts: Timeouts) -> None:
    """Set those of a transaction that has no run."""
    connection.execute(_SET_TIMEOUTS, milliseconds(timeouts))


@cache
def milliseconds(timeouts: Timeouts) -> Mapping[str, str | None]:
    """What `timeout_columns` is given, in its order. There are as many as handlers, at most."""

    def ms(timeout: timedelta) -> str:
        return str(max(1, int(timeout.total_seconds() * 1000)))

    return {
        "statement_ms": ms(timeouts.statement) if timeouts.statement else None,
        "lock_ms": ms(timeouts.lock) if timeouts.lock else "0",
        "transaction_ms": ms(timeouts.transaction),
    }


def is_marked(begun: Begun, result: str) -> bool:
    """Whether `begin` has marked the run done, just now and with this result."""
    return begun.marked_at is not None and result == "null" and time.monotonic() - begun.marked_at < PRECISION_S


async def complete(driver: Driver, run: Identity, begun: Begun, result: str) -> None:
    """Mark the run done, with its result as JSON, and take its outbox row away. Raises TransactionEnded."""
    if not await driver.fetchval(_COMPLETE, run.job_id, run.enqueued_ms, begun.transaction, result):
        raise TransactionEnded


async def close_unkept(connection: AsyncConnection, run: Identity) -> None:
    """End a job of a handler with once=False, whose success leaves no run."""
    await connection.execute(_CLOSE_UNKEPT, run.key)


async def take_row(connection: AsyncConnection, run: Identity) -> None:
    """Take away the outbox row of a job that is final."""
    await connection.execute(text(TAKE_ROW), run.key)


async def adopt(connection: AsyncConnection, run: Identity, message: bytes) -> None:
    """Write the outbox row of a direct job that isn't final after its first attempt. From here on it is safe."""
    row = {"name": run.name, "queue": run.queue, "message": restamp(message, enqueued_ms=run.enqueued_ms)}
    await connection.execute(_ADOPT, {**run.key, **row})


async def is_known(connection: AsyncConnection, job_id: str) -> bool:
    """Whether a job of this id waits or isn't final."""
    known: bool = (await connection.execute(_IS_KNOWN, {"id": job_id})).scalar_one()
    return known
