"""One transaction of one job: begin, call the handler, mark it done, commit. Raises whatever goes wrong."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from worker import run as ledger
from worker.chunk import Chunk, Step
from worker.database import create_sessions
from worker.delivery import Delivery
from worker.errors import JobTimeout, Permanent, SwallowedError
from worker.faults import (
    IN_FAILED_TRANSACTION,
    LOCK_NOT_AVAILABLE,
    FateUnknown,
    is_conflict,
    is_lost_connection,
    sqlstate,
)
from worker.guard import GUARD, Guard
from worker.handler import AnyHandler, ChunkedHandler, keeps_run
from worker.job import Job
from worker.outcome import Completed, Yielded
from worker.shield import to_its_end
from worker.stored import as_jsonb
from worker.zombies import Zombies

BEYOND = timedelta(seconds=30)
"""How much longer than its handler a transaction may last before PostgreSQL ends it."""


class LedgerBusy(Exception):  # noqa: N818 - it names what stands in the way; nothing is wrong
    """The run's lock wasn't to be had, or the ledger's own statement met a conflict. Counts nothing."""

    def __init__(self, *, is_conflict: bool) -> None:
        super().__init__("the run's lock is held elsewhere")
        self.is_conflict = is_conflict
        """Whether the same transaction may well succeed at once."""


@dataclass(frozen=True, slots=True)
class Work:
    """All that one transaction of a job needs."""

    run: ledger.Identity
    job: Job
    handler: AnyHandler
    delivery: Delivery
    message: bytes
    """As it stands in Redis; for the outbox row of a direct job that has to wait."""

    @property
    def limits(self) -> ledger.Limits:
        """What PostgreSQL holds its transactions to."""
        handler = self.handler
        return ledger.Limits(handler.statement_timeout, handler.lock_timeout, handler.timeout + BEYOND)


class Transactor:
    """Carries out transactions on one engine, each with a fresh session."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sessions = create_sessions()
        self._zombies = Zombies(engine)

    async def carry_out(
        self, work: Work, begun: Callable[[int], None]
    ) -> Completed | Yielded | ledger.Ended | ledger.NotDue:
        """One transaction; nothing of it stays unless it commits. `begun` is told how many failures came before it.

        Raises what the handler raises, LedgerBusy, FateUnknown, and the errors of database.py and errors.py.
        """
        work.delivery.hold.begins(work.handler.timeout)
        with _swallowed_errors_said():
            return await (self._once(work, begun) if keeps_run(work.handler) else self._at_least_once(work, begun))

    async def _once(
        self, work: Work, told: Callable[[int], None]
    ) -> Completed | Yielded | ledger.Ended | ledger.NotDue:
        guard = Guard()
        async with self._connected(work.handler, guard) as connection:
            begun = await self._begin(connection, work)
            if isinstance(begun, ledger.NotDue):
                return begun
            if isinstance(begun, ledger.Ended):
                with _ledger_conflicts_said():
                    await ledger.take_row(connection, work.run)
                await _commit(connection.commit())
                return begun
            told(begun.failures)
            session = self._sessions(bind=connection, info={GUARD: guard})
            with guard.watching():
                returned = await _call(work, begun, session)
            if connection.invalidated or not connection.in_transaction():
                raise SwallowedError
            with _ledger_conflicts_said():
                outcome = await _mark(connection, work, begun, returned)
            await _commit(connection.commit())
            return outcome

    @asynccontextmanager
    async def _connected(self, handler: AnyHandler, guard: Guard) -> AsyncGenerator[AsyncConnection]:
        """A connection whose transaction is rolled back unless it was committed, whoever is cancelled meanwhile.

        Where the connection is gone, so is the transaction; that hides nothing of what was raised within.
        """
        plain = await self._engine.connect()
        try:
            yield await plain.execution_options(**_options(handler, guard))
        finally:
            with suppress(DBAPIError):
                await to_its_end(plain.close())

    async def _begin(self, connection: AsyncConnection, work: Work) -> ledger.Begun | ledger.Ended | ledger.NotDue:
        try:
            return await ledger.begin(connection, work.run, work.limits)
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE or not await work.delivery.hold.is_ours():
                raise _conflict_of(error) from error
        # The lease is ours, so whoever holds the lock has lost it: a zombie.
        await connection.rollback()
        async with self._zombies.ended_for(connection):
            with _ledger_conflicts_said():
                return await ledger.begin(connection, work.run, work.limits)

    async def _at_least_once(self, work: Work, told: Callable[[int], None]) -> Completed:
        """once=False: no run is kept of a success, and PostgreSQL is asked nothing before the handler asks."""
        guard, failures = Guard(), work.delivery.failures
        begun = ledger.Begun(failures, None, {}, datetime.now(UTC), transaction="")
        told(failures)
        engine = self._engine.execution_options(**_options(work.handler, guard))
        session = self._sessions(bind=engine, info={GUARD: guard})
        event.listen(session.sync_session, "after_begin", partial(_limit, work.limits))
        try:
            with guard.watching():
                result = as_jsonb(await _call(work, begun, session), "result")
            await _commit(session.run_sync(Session.commit))
        finally:
            await to_its_end(session.run_sync(Session.close))
        if work.run.from_outbox:
            with _ledger_conflicts_said():
                await to_its_end(self._close_unkept(work.run))
        return Completed(json.loads(result))

    async def _close_unkept(self, run: ledger.Identity) -> None:
        async with self._engine.begin() as connection:
            await ledger.close_unkept(connection, run)


def _options(handler: AnyHandler, guard: Guard) -> dict[str, Any]:
    return {"isolation_level": handler.isolation, GUARD: guard}


def _limit(limits: ledger.Limits, _session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    ledger.limit(connection, limits)


async def _call(work: Work, begun: ledger.Begun, session: AsyncSession) -> object:
    """The handler, and all that it left to be flushed, within its timeout."""
    handler, hung = work.handler, None
    try:
        async with asyncio.timeout(handler.timeout.total_seconds()) as limit:
            with ledger.running(ledger.current_of(work.run, begun)):
                if isinstance(handler, ChunkedHandler):
                    cursor = None if begun.cursor is None else handler.codec.validate_json(json.dumps(begun.cursor))
                    returned: object = await handler.run(work.job, session, Chunk(cursor, handler.size))
                else:
                    returned = await handler.run(work.job, session)
            await session.flush()
        if not limit.expired():
            return returned
    except (TimeoutError, asyncio.CancelledError) as error:
        # In Python 3.11 a TaskGroup that failed leaves its task such that the timeout's cancellation stays one.
        if not limit.expired():
            raise
        hung = error
    # The handler may have swallowed it, too.
    raise JobTimeout(f"{work.run.name} ran longer than its timeout of {handler.timeout}; raise it or do less.") from hung


async def _mark(connection: AsyncConnection, work: Work, begun: ledger.Begun, returned: object) -> Completed | Yielded:
    """Write into the ledger what the handler has done, in the handler's own transaction."""
    if not isinstance(work.handler, ChunkedHandler):
        return await _complete(connection, work, begun, as_jsonb(returned, "result"))
    if not isinstance(returned, Step):
        raise Permanent(
            f"The chunked handler of {work.run.name} returned {type(returned).__name__}; return chunk.step(…)."
        )
    step: Step[Any] = returned
    dumped = None if step.cursor is None else work.handler.codec.dump_python(step.cursor, mode="json")
    cursor, counts = as_jsonb(dumped, "cursor"), as_jsonb(step.added_to(begun.counts), "counts")
    await ledger.advance(connection, work.run, begun, cursor=cursor, counts=counts, done=step.done, total=step.total)
    if step.cursor is None:
        return await _complete(connection, work, begun, counts)
    if not work.run.from_outbox:
        await ledger.adopt(connection, work.run, work.message)
    return Yielded()


async def _complete(connection: AsyncConnection, work: Work, begun: ledger.Begun, result: str) -> Completed:
    await ledger.complete(connection, work.run, begun, result)
    return Completed(json.loads(result))


async def _commit(commit: Coroutine[Any, Any, None]) -> None:
    """Commit, whatever is cancelled meanwhile. Raises FateUnknown where the connection breaks under it."""
    try:
        await to_its_end(commit)
    except DBAPIError as error:
        if is_lost_connection(error):
            raise FateUnknown("the connection was lost while the commit was under way") from error
        raise


@contextmanager
def _swallowed_errors_said() -> Generator[None]:
    """Some errors only tell that the handler swallowed an earlier one: SwallowedError then."""
    try:
        yield
    except PendingRollbackError as error:
        raise SwallowedError from error
    except DBAPIError as error:
        if sqlstate(error) == IN_FAILED_TRANSACTION:
            raise SwallowedError from error
        raise


@contextmanager
def _ledger_conflicts_said() -> Generator[None]:
    """Lock timeouts and conflicts in the ledger's own statements are nobody's failure: LedgerBusy then."""
    try:
        yield
    except DBAPIError as error:
        raise _conflict_of(error) from error


def _conflict_of(error: DBAPIError) -> Exception:
    if is_conflict(error) or sqlstate(error) == LOCK_NOT_AVAILABLE:
        return LedgerBusy(is_conflict=is_conflict(error))
    return error
