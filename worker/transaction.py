"""One transaction of one job: begin, call the handler, mark it done, commit. Raises whatever goes wrong."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import JsonValue
from pydantic_core import to_jsonable_python
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from worker import run as ledger
from worker.chunk import Chunk, Step
from worker.database import OWNER, CommitRefused
from worker.delivery import Delivery
from worker.errors import Permanent
from worker.faults import IN_FAILED_TRANSACTION, LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE, is_lost_connection, sqlstate
from worker.handler import AnyHandler, ChunkedHandler, keeps_run
from worker.job import Job
from worker.outcome import Completed, Yielded
from worker.reporting.observer import Observation
from worker.shield import to_its_end
from worker.zombies import end_blockers

BEYOND = timedelta(seconds=30)
"""How much longer than its handler a transaction may last before PostgreSQL ends it."""


class LedgerBusy(Exception):
    """The run's lock wasn't to be had, or the ledger's own statement met a conflict. Counts nothing."""


class FateUnknown(Exception):
    """The connection was lost while the commit was under way."""


class SwallowedError(Exception):
    """The handler caught a database error and went on; its transaction could not commit."""

    def __init__(self) -> None:
        super().__init__(
            "The handler swallowed a database error, which had failed the whole transaction, so nothing was committed; "
            "put the statement that may fail inside `async with session.begin_nested():`."
        )


class JobTimeout(Exception):
    """The handler ran longer than its policy allows."""


@dataclass(frozen=True, slots=True)
class Work:
    """All that one transaction of a job needs."""

    run: ledger.Identity
    job: Job
    handler: AnyHandler
    delivery: Delivery
    message: bytes
    """As it stands in Redis; for the outbox row of a direct job that has to wait."""


class Transactor:
    """Carries out transactions on one engine, each with a fresh session."""

    def __init__(self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._engine = engine
        self._sessions = sessions

    async def carry_out(
        self, work: Work, observation: Observation
    ) -> Completed | Yielded | ledger.Ended | ledger.NotDue:
        """One transaction; nothing of it stays unless it commits.

        Raises what the handler raises, LedgerBusy, FateUnknown, SwallowedError, JobTimeout, and database errors.
        """
        work.delivery.hold.begins(work.handler.timeout)
        if not keeps_run(work.handler):
            return await self._carry_out_unkept(work, observation)
        async with self._engine.connect() as plain:
            options = {"isolation_level": work.handler.isolation, OWNER: asyncio.current_task()}
            connection = await plain.execution_options(**options)
            transaction = await connection.begin()
            begun = await self._begin(connection, work)
            if isinstance(begun, ledger.NotDue):
                return begun
            if isinstance(begun, ledger.Ended):
                await ledger.take_row(connection, work.run)
                await _commit(connection)
                return begun
            observation.begun(begun.failures + 1)
            session = self._sessions(bind=connection)
            with ledger.running(ledger.current_of(work.run, begun)):
                returned = await self._call(work, session, begun)
            if not transaction.is_active:
                raise SwallowedError
            try:
                outcome = await _mark(connection, work, begun, returned)
            except DBAPIError as error:
                raise _ledger_error(error) from error
            await _commit(connection)
            return outcome

    async def _begin(self, connection: AsyncConnection, work: Work) -> ledger.Begun | ledger.Ended | ledger.NotDue:
        limits = ledger.Limits(work.handler.statement_timeout, work.handler.lock_timeout, work.handler.timeout + BEYOND)
        try:
            return await ledger.begin(connection, work.run, limits)
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE or not await work.delivery.hold.is_ours():
                raise _ledger_error(error) from error
        # The lease is ours, so whoever holds the lock has lost it: a zombie.
        await connection.rollback()
        _ = await connection.begin()
        raw = await connection.get_raw_connection()
        driver: Any = raw.driver_connection
        ending = asyncio.create_task(end_blockers(self._engine, driver.get_server_pid()))
        try:
            return await ledger.begin(connection, work.run, limits)
        except DBAPIError as error:
            raise _ledger_error(error) from error
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _call(self, work: Work, session: AsyncSession, begun: ledger.Begun) -> object:
        handler = work.handler
        try:
            async with asyncio.timeout(handler.timeout.total_seconds()) as limit:
                if isinstance(handler, ChunkedHandler):
                    cursor = None if begun.cursor is None else handler.codec.validate_python(begun.cursor)
                    returned: object = await handler.run(work.job, session, Chunk(cursor, handler.size))
                else:
                    returned = await handler.run(work.job, session)
                await session.flush()
        except TimeoutError:
            if limit.expired():
                raise JobTimeout(
                    f"{work.run.name} ran longer than its timeout of {handler.timeout}; raise it or do less."
                ) from None
            raise
        return returned

    async def _carry_out_unkept(self, work: Work, observation: Observation) -> Completed:
        """once=False: no run is kept of a success, and PostgreSQL is asked nothing before the handler asks."""
        options = {"isolation_level": work.handler.isolation, OWNER: asyncio.current_task()}
        bind = self._engine.execution_options(**options)
        session = self._sessions(bind=bind)
        begun = ledger.Begun(work.delivery.failures, None, {}, ledger.moment(work.run.enqueued_ms))
        observation.begun(begun.failures + 1)
        try:
            with ledger.running(ledger.current_of(work.run, begun)):
                result = _as_result(await self._call(work, session, begun))
            await to_its_end(session.run_sync(Session.commit))
        except DBAPIError as error:
            if _is_refused(error):
                raise SwallowedError from error
            raise
        finally:
            await to_its_end(session.run_sync(Session.close))
        if work.run.from_outbox:
            async with self._engine.begin() as connection:
                await ledger.close_unkept(connection, work.run)
        return Completed(result)


async def _mark(connection: AsyncConnection, work: Work, begun: ledger.Begun, returned: object) -> Completed | Yielded:
    """Write into the ledger what the handler has done, in the handler's own transaction."""
    if not isinstance(work.handler, ChunkedHandler):
        result = _as_result(returned)
        await ledger.complete(connection, work.run, result, begun.failures)
        return Completed(result)
    if not isinstance(returned, Step):
        raise Permanent(
            f"The chunked handler of {work.run.name} returned {type(returned).__name__}; return chunk.step(…)."
        )
    step: Step[Any] = returned
    totals = _added(begun.counts, step)
    cursor: JsonValue = None if step.cursor is None else work.handler.codec.dump_python(step.cursor, mode="json")
    await ledger.advance(connection, work.run, cursor=cursor, done=step.done, total=step.total, counts=totals)
    if step.cursor is None:
        await ledger.complete(connection, work.run, totals, 0)
        return Completed(totals)
    if not work.run.from_outbox:
        await ledger.adopt(connection, work.run, work.message)
    return Yielded()


def _added(counts: Mapping[str, JsonValue], step: Step[Any]) -> dict[str, JsonValue]:
    """The run's result so far: counts add up, other results replace."""
    totals = dict(counts)
    for name, count in step.counts.items():
        before = totals.get(name, 0)
        totals[name] = count + (before if isinstance(before, int) else 0)
    return {**totals, **step.result}


def _as_result(returned: object) -> JsonValue:
    """What the handler returned, as JSON values. Raises Permanent where it is none."""
    try:
        result: JsonValue = to_jsonable_python(returned)
    except ValueError as error:
        raise Permanent(
            f"The handler's result can't be written as JSON ({type(error).__name__}); return plain values."
        ) from None
    return result


async def _commit(connection: AsyncConnection) -> None:
    """Commit, whatever is cancelled meanwhile. Raises FateUnknown where the connection breaks under it."""
    try:
        await to_its_end(connection.commit())
    except DBAPIError as error:
        if _is_refused(error):
            raise SwallowedError from error
        if is_lost_connection(error):
            raise FateUnknown from error
        raise


def _is_refused(error: DBAPIError) -> bool:
    cause = error.orig.__cause__ if error.orig else None
    return isinstance(cause, CommitRefused) or sqlstate(error) == IN_FAILED_TRANSACTION


def _ledger_error(error: DBAPIError) -> Exception:
    """What a database error in the ledger's own statement means."""
    state = sqlstate(error)
    if state == IN_FAILED_TRANSACTION:
        return SwallowedError()
    if state in {LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE}:
        return LedgerBusy("the run's lock is held elsewhere")
    return error
