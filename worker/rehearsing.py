"""A handler called in a test's own session is held to what a worker would hold it to."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from worker.connection import put_on, take_off
from worker.errors import SwallowedError
from worker.faults import IN_FAILED_TRANSACTION, sqlstate
from worker.flushing import flush_all
from worker.guard import GUARD, Guard


@asynccontextmanager
async def held_to_rules(session: AsyncSession) -> AsyncGenerator[None]:
    """Flush what is left in the session, and refuse what a worker refuses.

    Raises SessionMisuse, TransactionEnded and SwallowedError. With an engine that `worker.database` didn't make, only
    what the session itself refuses is noticed.
    """
    guard = Guard()
    connection = await session.connection()
    put_on(connection.sync_connection, guard)  # type: ignore[arg-type]  # it is connected
    session.info[GUARD] = guard
    try:
        with guard:
            yield
        if connection.invalidated:
            raise SwallowedError(lost=True)
        await flush_all(session)
        await session.execute(text("select"))  # fails where the transaction has
    except DBAPIError as error:
        if sqlstate(error) == IN_FAILED_TRANSACTION:
            raise SwallowedError from error
        raise
    finally:
        take_off(connection.sync_connection)  # type: ignore[arg-type]  # as above
        session.info.pop(GUARD, None)
