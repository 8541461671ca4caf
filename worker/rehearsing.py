"""A handler called in a test's own session is held to what a worker would hold it to."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from worker.connection import watched
from worker.errors import SwallowedError, TransactionEnded
from worker.faults import IN_FAILED_TRANSACTION, sqlstate
from worker.flushing import flush_all
from worker.guard import GUARD, Guard
from worker.models import Run

WHERE_RUNS_ARE = {"mapper": Run}
"""A session may have several engines."""


@asynccontextmanager
async def held_to_rules(session: AsyncSession) -> AsyncGenerator[None]:
    """Flush what is left in the session, and refuse what a worker refuses.

    Raises SessionMisuse, TransactionEnded and SwallowedError. With an engine that `worker.database` didn't make, what a
    handler does beside the session isn't noticed.
    """
    guard = Guard()
    connection = await session.connection(bind_arguments=WHERE_RUNS_ARE)
    transaction = session.sync_session.get_transaction()
    session.info[GUARD] = guard
    try:
        with watched(connection.sync_connection, guard):  # type: ignore[arg-type]  # it is connected
            with guard:
                yield
            if session.sync_session.get_transaction() is not transaction or guard.rolled_back:
                raise TransactionEnded
            if connection.invalidated or not session.is_active:  # a flush that failed has rolled back
                raise SwallowedError(lost=connection.invalidated)
            await flush_all(session)
            await session.execute(text("select"), bind_arguments=WHERE_RUNS_ARE)  # fails where the transaction has
    except DBAPIError as error:
        if sqlstate(error) == IN_FAILED_TRANSACTION:
            raise SwallowedError from error
        raise
    finally:
        session.info.pop(GUARD, None)
