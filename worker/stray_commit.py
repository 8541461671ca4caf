"""A commit that a handler made behind everybody's back, found out when its attempt fails."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.connection import driver_of
from worker.driver import Driver
from worker.errors import JobTimeout, TransactionEnded
from worker.ledger import Identity
from worker.shield import to_its_end

T = TypeVar("T")

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


async def noticed(
    working: Coroutine[Any, Any, T],
    engine: AsyncEngine,
    connection: AsyncConnection,
    runs: Sequence[Identity],
    transaction: str,
) -> T:
    """What `working` returns or raises; TransactionEnded where it raised after `transaction` had been committed.

    Then half of the work is there for good. The marks that `begin` made are taken back: none of `runs` is done.
    """
    try:
        return await working
    except BaseException as error:
        if await to_its_end(_has_committed(engine, connection, runs, transaction, error)):
            raise TransactionEnded from error
        raise


async def _has_committed(
    engine: AsyncEngine, connection: AsyncConnection, runs: Sequence[Identity], transaction: str, error: BaseException
) -> bool:
    """Takes the marks back, too."""
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
