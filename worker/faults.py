"""What an error says about the servers, told by SQLSTATE and by type. Pure judgement; nothing is done here."""

import asyncpg
from sqlalchemy.exc import DBAPIError

from worker.database import DatabaseAway

LOCK_NOT_AVAILABLE = "55P03"
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
IN_FAILED_TRANSACTION = "25P02"
UNIQUE_VIOLATION = "23505"
# Connection exceptions (class 08), the server's end or restart (57P0x), and an idle or overlong transaction it ended.
LOST_STATES = ("08", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04")


class FateUnknown(ConnectionError):  # noqa: N818 - it names what isn't known
    """The connection was lost while the commit was under way."""


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of `error`, SQLAlchemy's or asyncpg's; empty where it has none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return str(getattr(cause, "sqlstate", None) or "")


def is_conflict(error: BaseException) -> bool:
    """A deadlock or a serialization failure: the same transaction may well succeed when it is run again."""
    return sqlstate(error) in {SERIALIZATION_FAILURE, DEADLOCK_DETECTED}


def is_lost_connection(error: BaseException) -> bool:
    """The connection to PostgreSQL is gone or was never made. A handler's own network errors are not meant."""
    if isinstance(error, DatabaseAway | FateUnknown) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, asyncpg.InterfaceError | asyncpg.PostgresError) or isinstance(error, DBAPIError):
        return sqlstate(error).startswith(LOST_STATES) or "connection is closed" in str(cause)
    return False


def is_expected(error: BaseException) -> bool:
    """An operational error that happens to everybody; counted and waited out, not paged."""
    return is_conflict(error) or is_lost_connection(error) or sqlstate(error) == LOCK_NOT_AVAILABLE
