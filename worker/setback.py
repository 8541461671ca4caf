"""What an attempt that did not commit leaves behind: a failure, a snooze, a cancellation."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker import ledger
from worker.availability import Availability
from worker.brakes import Held
from worker.database import DatabaseAway, read_committed
from worker.faults import has_waited, is_expected, is_lost_connection
from worker.outcome import BUSY, Cancelled, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded, describe
from worker.reporting.tracebacks import with_texts
from worker.retry import RetryPolicy
from worker.stored import as_text
from worker.wire import ABORTED, UNREADABLE_NAME

MAX_TRACEBACK = 20_000
"""Characters; the innermost frames stand at the end and are kept."""

# Compare-and-set: a run that is final, or whose attempt somebody else counted, or that somebody else carried on by a
# chunk, stays as it is. A job from the outbox is written only while its row stands.
# (make_interval: the days of an interval are the session's, which have 23 or 25 hours now and then.)
_MOVE = text("""
insert into worker.run
    (id, enqueued_ms, name, queue, status, from_outbox, attempt, next_at, error, message, finished_at)
select :id, :ms, :name, :queue, :status, :from_outbox, :attempt,
    case when not :final then clock_timestamp() + make_interval(secs => :delay_s) end, :error, :message,
    case when :final then clock_timestamp() end
where not :from_outbox or exists (select from worker.outbox where id = :id and enqueued_ms = :ms)
on conflict (id, enqueued_ms) do update set status = excluded.status, attempt = excluded.attempt,
    next_at = excluded.next_at, error = excluded.error, message = excluded.message, finished_at = excluded.finished_at
where run.attempt = :failures and run.chunks = coalesce(cast(:chunks as bigint), run.chunks)
    and run.finished_at is null
""")
_NOTE_FAILURE = text("""
insert into worker.attempt (id, enqueued_ms, attempt, error, traceback, worker)
values (:id, :ms, :attempt, :error, :traceback, :worker)
""")
# What can't be read doesn't say its enqueue time, so its outbox row is known by its bytes.
_TAKE_UNREADABLE = "delete from worker.outbox where id = :id and message = :message"
_SEEN = text("select attempt, chunks from worker.run where id = :id and enqueued_ms = :ms for update")
# Nothing of a final run waits any more, nor what came after it and is its duplicate.
_LOOK = text(f"""
with seen as (
    select status, result, error, finished_at from worker.run where id = :id and enqueued_ms = :ms
), taken as (
    {ledger.TAKE_ROW} and exists (select from seen where finished_at is not null)
), taken_unreadable as (
    {_TAKE_UNREADABLE} and :unreadable and exists (select from seen where finished_at is not null)
)
select status, result, error from seen
""")  # noqa: S608 - put together from the constants above


@dataclass(frozen=True, slots=True)
class Move:
    """Where a run goes when its attempt did not commit."""

    status: ledger.RunStatus
    error: str
    delay: timedelta = timedelta(0)
    burns: bool = False
    """Whether it is a failure, and burns an attempt."""
    traceback: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self.status in ledger.FINAL


Decision = Callable[[int], tuple[Move, Outcome]]
"""From the failures counted so far to where the run goes, and what that is called."""


def failed(error: BaseException, retry: RetryPolicy) -> Decision:
    """A failure: it is counted, and the policy says whether there is a next attempt."""
    trace, told = with_texts(error)[-MAX_TRACEBACK:], describe(error)

    def decide(failures: int) -> tuple[Move, Outcome]:
        if retry.is_hopeless(error, failures + 1):
            return Move("dead", told, burns=True, traceback=trace), Dead(told)
        delay = retry.delay(failures + 1)
        return Move("retrying", told, delay, burns=True, traceback=trace), Retrying(delay, told)

    return decide


def snoozed(outcome: Snoozed, error: BaseException) -> Decision:
    """A wait that the handler asked for."""
    return lambda _: (Move("snoozed", describe(error), outcome.delay), outcome)


def held_back(held: Held) -> Decision:
    """A wait that a chunked job is made to have; what it has done stays."""
    return lambda _: (
        Move("yielded", f"held back: {held.reason}", held.delay),
        Yielded(held.delay, held.reason, has_committed=False),
    )


def cancelled(outcome: Cancelled) -> Decision:
    """An end that the handler or arq's abort asked for."""
    return lambda _: (Move("cancelled", outcome.reason), outcome)


def duplicate_of(ended: ledger.Ended) -> Duplicate:
    """A delivery of a run that is final already."""
    if ended.status in {None, "completed"}:
        return Duplicate(ended.result)
    error = ended.error or str(ended.status)
    return Duplicate(None, failed=f"{ABORTED}: {error}" if ended.status == "cancelled" else error)


class Setbacks:
    """Records them in the ledger, each in a transaction of its own."""

    def __init__(self, engine: AsyncEngine, availability: Availability, worker: str) -> None:
        """`worker` names this process beside the failures it met."""
        self._engine = read_committed(engine)
        self._availability = availability
        self._worker = worker

    async def record(self, run: ledger.Identity, message: bytes, seen: ledger.Seen | None, decide: Decision) -> Outcome:
        """Write down what was decided.

        `seen`: what the attempt saw of the run when it began; None where it saw nothing. Where the ledger can't be
        written just now, or somebody else has moved the run on, nothing counts. Raises what nobody expects.
        """
        try:
            async with self._engine.begin() as connection:
                if seen is None:
                    seen = await self._look(connection, run)
                move, outcome = decide(seen.failures)
                if await self._move(connection, run, move, seen, message):
                    return outcome
                asked = {**run.key, "unreadable": run.name == UNREADABLE_NAME, "message": message}
                row = (await connection.execute(_LOOK, asked)).one_or_none()
        except (DBAPIError, DatabaseAway) as error:
            if not is_expected(error) and not has_waited(error):
                raise
            if is_lost_connection(error):
                await self._availability.check()
            return Released(f"the ledger can't be written ({type(error).__name__})", BUSY)
        if row is not None and row.status not in ledger.FINAL:
            return Released("another worker has taken it over", BUSY)
        return duplicate_of(ledger.Ended(row.status, row.result, row.error) if row else ledger.Ended(None))

    async def _look(self, connection: AsyncConnection, run: ledger.Identity) -> ledger.Seen:
        """What the run says; locks it, where it exists."""
        row = (await connection.execute(_SEEN, run.key)).one_or_none()
        return ledger.Seen(*row) if row else ledger.Seen(0, 0)

    async def _move(
        self, connection: AsyncConnection, run: ledger.Identity, move: Move, seen: ledger.Seen, message: bytes
    ) -> bool:
        """Write `move`. False: the run is final, or somebody else has counted this attempt."""
        attempt, error = seen.failures + move.burns, as_text(move.error)
        mine = {"name": run.name, "queue": run.queue, "from_outbox": run.from_outbox, **seen._asdict()}
        kept = message if move.is_final else None
        state = {"status": move.status, "attempt": attempt, "delay_s": move.delay.total_seconds(), "error": error}
        moved = await connection.execute(_MOVE, {**run.key, **mine, **state, "final": move.is_final, "message": kept})
        if moved.rowcount == 0:
            return False
        if move.burns:
            trace = as_text(move.traceback)
            note = {"attempt": attempt, "error": error, "traceback": trace, "worker": self._worker}
            await connection.execute(_NOTE_FAILURE, {**run.key, **note})
        if move.is_final:
            await ledger.take_row(connection, run)
            if run.name == UNREADABLE_NAME:
                await connection.execute(text(_TAKE_UNREADABLE), {"id": run.job_id, "message": message})
        elif not run.from_outbox:
            await ledger.adopt(connection, run, message)
        return True
