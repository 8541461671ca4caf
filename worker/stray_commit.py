"""A commit that a handler made behind everybody's back, found out when its attempt fails."""

import asyncio
from collections.abc import Sequence

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.connection import driver_of
from worker.driver import Driver
from worker.errors import JobTimeout
from worker.run import Identity

_TRANSACTION = "select pg_current_xact_id_if_assigned()::text"

# What that transaction has marked done, and nobody has touched since.
_UNMARK = text("""
with unmarked as (
    update worker.run set status = 'waiting', result = null, finished_at = null
    from unnest(cast(:ids as text[]), cast(:mss as bigint[])) as given (id, enqueued_ms)
    where run.id = given.id and run.enqueued_ms = given.enqueued_ms and status = 'completed'
        and run.xmin = cast(cast(cast(:transaction as text) as xid8) as xid)
)
select coalesce(pg_xact_status(cast(cast(:transaction as text) as xid8)) = 'committed', false)
""")


async def undo_marks(
    engine: AsyncEngine, connection: AsyncConnection, runs: Sequence[Identity], transaction: str, error: BaseException
) -> bool:
    """Whether `transaction`, in which `error` was raised, has been committed. Then none of `runs` is done all the same.

    Half of the work, and the marks that `begin` made, are there for good.
    """
    if connection.invalidated or not await _has_ended(driver_of(connection), transaction, error):
        return False
    given = {"ids": [run.job_id for run in runs], "mss": [run.enqueued_ms for run in runs], "transaction": transaction}
    async with engine.begin() as other:
        has_committed: bool = (await other.execute(_UNMARK, given)).scalar_one()
    return has_committed


async def _has_ended(driver: Driver, transaction: str, error: BaseException) -> bool:
    """Whether the driver may be in no transaction any more, or in another (COMMIT AND CHAIN)."""
    if not driver.is_in_transaction():
        return True
    if isinstance(error, asyncio.CancelledError | JobTimeout):
        return False  # something may hang; don't ask
    try:
        now: str | None = await driver.fetchval(_TRANSACTION)
    except asyncpg.InFailedSQLTransactionError:
        return True  # it can't tell
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False
    return now != transaction
