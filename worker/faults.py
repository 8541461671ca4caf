"""What an error says about the servers and the transaction, told by SQLSTATE and by type."""

from collections.abc import Coroutine
from typing import Any, cast

import asyncpg
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.database import DatabaseAway
from worker.errors import SwallowedError
from worker.shield import to_its_end

LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
IN_FAILED_TRANSACTION = "25P02"
UNIQUE_VIOLATION = "23505"
# Connection exceptions (class 08), the server's end or restart (57P0x), an idle or overlong transaction it ended, and a
# server that takes no writes (25006), as a primary that has become a standby.
LOST_STATES = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "25006")


class FateUnknown(ConnectionError):
    """The connection was lost while the commit was under way."""


class LedgerBusy(Exception):
    """The run's lock wasn't to be had, or the ledger's own statement met a conflict. Counts nothing."""

    def __init__(self, *, is_conflict: bool) -> None:
        super().__init__("the run's lock is held elsewhere")
        self.is_conflict = is_conflict
        """Whether the same transaction may well succeed at once."""


def of_driver(error: BaseException) -> BaseException:
    """The driver's own error, which SQLAlchemy wraps; what stands for it where there is none."""
    if not isinstance(error, DBAPIError):
        return error
    try:
        return error.driver_exception
    except ValueError:  # one that SQLAlchemy has told anew of asyncpg's, or that somebody has made himself
        cause = error.orig and error.orig.__cause__
        return cause or error.orig or error


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of `error`, SQLAlchemy's or asyncpg's; empty where it has none, or where to look raises."""
    try:
        return str(getattr(of_driver(error), "sqlstate", None) or "")
    except Exception:  # noqa: BLE001 - whatever an error's own code does
        return ""


def is_conflict(error: BaseException) -> bool:
    """A deadlock, a serialization failure, or a table that was changed since its statement was prepared.

    The same transaction may well succeed when it is run again.
    """
    is_outdated = isinstance(of_driver(error), asyncpg.InvalidCachedStatementError)
    return is_outdated or sqlstate(error) in {SERIALIZATION_FAILURE, DEADLOCK_DETECTED}


def is_lost_connection(error: BaseException) -> bool:
    """The connection to PostgreSQL is gone or was never made. A handler's own network errors are not meant."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    match of_driver(error):
        case DatabaseAway() | FateUnknown():
            return True
        case asyncpg.InternalClientError():  # the server's farewell was met in the middle of something
            return True
        case asyncpg.InterfaceError() as cause:
            return "connection is closed" in str(cause)
        case asyncpg.PostgresError():
            return sqlstate(error).startswith(LOST_STATES)
        case _:
            return False


def has_waited(error: BaseException) -> bool:
    """A lock wasn't to be had in time: in the runtime's own lock_timeout, or in a shorter statement_timeout."""
    return sqlstate(error) in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}


def is_expected(error: BaseException) -> bool:
    """An operational error that happens to everybody; counted and waited out, not paged."""
    return (
        is_conflict(error) or is_lost_connection(error) or is_pool_empty(error) or sqlstate(error) == LOCK_NOT_AVAILABLE
    )


def is_pool_empty(error: BaseException) -> bool:
    """All connections of the pool were taken for as long as one waits for them (30 s)."""
    return isinstance(error, PoolTimeout)


class in_ledger:  # noqa: N801 - it is used as a function, and a generator would cost more than what it does
    """Lock timeouts and conflicts in the ledger's own statements are nobody's failure: LedgerBusy then."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, DBAPIError | asyncpg.PostgresError) and (is_conflict(error) or has_waited(error)):
            raise LedgerBusy(is_conflict=is_conflict(error)) from error


def plainly(error: BaseException) -> BaseException:
    """`error`, or SwallowedError for those that only tell that the handler swallowed an earlier one.

    Of a group of one, that one: a Snooze, or what is Permanent, means the same where it comes through a TaskGroup.
    """
    error = _alone(error)
    if not isinstance(error, PendingRollbackError) and sqlstate(error) != IN_FAILED_TRANSACTION:
        return error
    swallowed = SwallowedError()
    swallowed.__cause__ = error
    return swallowed.with_traceback(error.__traceback__)


def _alone(error: BaseException) -> BaseException:
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _alone(group.exceptions[0]) if len(group.exceptions) == 1 else group


async def fate_of(committing: Coroutine[Any, Any, None]) -> None:
    """Commit, whatever is cancelled meanwhile. Raises FateUnknown where the connection breaks under it."""
    try:
        await to_its_end(committing)
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if is_lost_connection(error):
            raise FateUnknown("the connection was lost while the commit was under way") from error
        raise
