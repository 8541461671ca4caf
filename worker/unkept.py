"""once=False: no run is kept of a success, and PostgreSQL is asked nothing before the handler asks. At least once."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast, get_args

from pydantic_core import from_json
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from worker import ledger
from worker.call import Work, ask, timeouts_of, within_timeout
from worker.connection import put_on
from worker.deadline import Deadlines
from worker.faults import fate_of, in_ledger
from worker.guard import GUARD, Guard, GuardedSession
from worker.handler import Handler, Isolation
from worker.lazy_session import LazySession
from worker.outcome import Completed
from worker.run import CurrentRun, current_of
from worker.shield import to_its_end
from worker.stored import as_jsonb

NOTHING = Completed()
HANDLER = "ratchet_handler"
"""Where a session's handler is found, in its info."""


class UnkeptSession(GuardedSession):
    """A session that sets its attempt's guard and timeouts when the handler first asks for a transaction."""


@event.listens_for(UnkeptSession, "after_begin")
def _on_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    """SQLAlchemy's event, for the class: to listen on each session would cost more than all the rest of it."""
    guard: Guard = session.info[GUARD]
    handler: Handler[Any] = session.info[HANDLER]
    asked = connection.get_execution_options().get("isolation_level")
    if asked != handler.isolation:
        guard.refuse(
            f"A handler asked for the isolation level {asked}, and its transaction has {handler.isolation}; "
            "give it to the Handler (isolation=…)."
        )
    put_on(connection, guard)
    ledger.set_timeouts(connection, timeouts_of(handler))


def _current(work: Work) -> CurrentRun:
    """What its handler is told, when it asks."""
    delivered_at = datetime.fromtimestamp(work.delivery.delivered_ms / 1000, UTC)
    return current_of(work.run, ledger.Begun(work.delivery.failures, delivered_at, transaction=""))


async def _commit(session: AsyncSession, guard: Guard) -> None:
    """In a task of its own, which may release the savepoints that the handler has left open."""
    guard.owner = cast("asyncio.Task[Any]", asyncio.current_task())
    await session.run_sync(Session.commit)


class UnkeptTransactor:
    """Carries out the transactions of handlers with once=False."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._deadlines = Deadlines()
        # An engine an isolation level: each shares the pool. To make one is slow.
        self._engines = {level: engine.execution_options(isolation_level=level) for level in get_args(Isolation)}

    async def carry_out(self, work: Work, guard: Guard) -> Completed:
        """One transaction, if the handler asks for one. Raises as Transactor.carry_out does."""
        handler = work.handler
        engine = self._engines[handler.isolation]
        session = LazySession(UnkeptSession, bind=engine, info={GUARD: guard, HANDLER: handler})
        try:
            start = partial(ask, handler, work.take_job(), session)
            told = partial(_current, work)
            returned = await within_timeout(handler, told, start, session, guard=guard, deadlines=self._deadlines)
            result = as_jsonb(returned, "result")
            if session.in_transaction():
                await fate_of(_commit(session, guard))
        finally:
            # Where the connection is gone, so is the transaction; that hides nothing of what was raised within.
            if session.in_transaction():
                with suppress(DBAPIError):
                    await to_its_end(session.run_sync(Session.close))
        if work.message.from_outbox:
            with in_ledger():
                await to_its_end(self._close(work.run))
        return NOTHING if returned is None else Completed(from_json(result))

    async def _close(self, run: ledger.Identity) -> None:
        async with self._engines["READ COMMITTED"].begin() as connection:
            await ledger.close_unkept(connection, run)
