"""What an error says about the servers: by SQLSTATE and type, SQLAlchemy's and the driver's own."""

import asyncpg
import pytest
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from worker.database import DatabaseAway
from worker.errors import SwallowedError
from worker.faults import (
    FateUnknown,
    LedgerBusy,
    in_ledger,
    is_conflict,
    is_expected,
    is_lost_connection,
    plainly,
    sqlstate,
)


def wrapped(error: Exception, *, invalidated: bool = False) -> DBAPIError:
    """The error as SQLAlchemy raises it."""
    translated = AsyncAdapt_asyncpg_dbapi.Error(str(error), error)  # type: ignore[no-untyped-call]  # SQLAlchemy's
    return DBAPIError("select 1", {}, translated, connection_invalidated=invalidated)


CONFLICTS = (asyncpg.SerializationError("a"), asyncpg.DeadlockDetectedError("a"))
LOST = (
    asyncpg.ConnectionDoesNotExistError("a"),
    asyncpg.ConnectionFailureError("a"),
    asyncpg.AdminShutdownError("a"),
    asyncpg.CrashShutdownError("a"),
    asyncpg.CannotConnectNowError("a"),
    asyncpg.IdleSessionTimeoutError("a"),
    asyncpg.IdleInTransactionSessionTimeoutError("a"),
    asyncpg.InterfaceError("cannot perform operation: connection is closed"),
    asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
)
OTHERS = (
    asyncpg.UniqueViolationError("a"),
    asyncpg.InFailedSQLTransactionError("a"),
    asyncpg.QueryCanceledError("a"),
    asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
)


@pytest.mark.parametrize("error", CONFLICTS)
def test_deadlocks_and_serialization_failures_are_conflicts_whoever_raises_them(error: Exception) -> None:
    for each in (error, wrapped(error)):
        assert is_conflict(each)
        assert is_expected(each)
        assert not is_lost_connection(each)


@pytest.mark.parametrize("error", LOST)
def test_a_lost_connection_is_known_whoever_tells_of_it(error: Exception) -> None:
    for each in (error, wrapped(error)):
        assert is_lost_connection(each)
        assert is_expected(each)
        assert not is_conflict(each)


@pytest.mark.parametrize("error", [*OTHERS, ConnectionResetError("the bank"), TimeoutError(), OSError(), ValueError()])
def test_other_errors_are_neither_and_a_handlers_own_network_errors_are_its_own(error: Exception) -> None:
    assert not is_lost_connection(error)
    assert not is_conflict(error)
    assert not is_expected(error)


@pytest.mark.parametrize("orig", [None, AsyncAdapt_asyncpg_dbapi.Error("a"), ValueError()])  # type: ignore[no-untyped-call]  # as above
def test_an_error_of_the_database_without_one_of_the_driver_is_any_error(orig: Exception | None) -> None:
    """Whoever raises an IntegrityError himself has none."""
    error = DBAPIError("select 1", {}, orig)  # type: ignore[arg-type]  # as no type checker has seen it
    assert not is_lost_connection(error)
    assert not is_conflict(error)
    assert not is_expected(error)
    assert plainly(error) is error
    assert sqlstate(error) == ""


def test_what_sqlalchemy_invalidated_is_lost_too() -> None:
    assert is_lost_connection(wrapped(ValueError(), invalidated=True))


def test_so_are_a_database_that_is_away_and_a_commit_of_unknown_fate() -> None:
    assert is_lost_connection(DatabaseAway(OSError()))
    assert is_lost_connection(FateUnknown())


def test_the_sqlstate_is_read_through_sqlalchemy_and_empty_where_there_is_none() -> None:
    assert sqlstate(wrapped(asyncpg.UniqueViolationError("a"))) == "23505"
    assert sqlstate(asyncpg.UniqueViolationError("a")) == "23505"
    assert sqlstate(ValueError()) == ""


@pytest.mark.parametrize(("error", "conflict"), [(asyncpg.LockNotAvailableError("a"), False), (CONFLICTS[0], True)])
def test_in_the_ledger_a_lock_timeout_or_conflict_means_busy(error: Exception, *, conflict: bool) -> None:
    with pytest.raises(LedgerBusy) as busy, in_ledger():
        raise wrapped(error)
    assert busy.value.is_conflict is conflict


def test_any_other_error_in_the_ledger_is_itself() -> None:
    error = wrapped(OTHERS[0])
    with pytest.raises(DBAPIError) as raised, in_ledger():
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [PendingRollbackError(), wrapped(asyncpg.InFailedSQLTransactionError("a"))])
def test_errors_that_only_follow_from_a_swallowed_one_say_so(error: Exception) -> None:
    said = plainly(error)
    assert isinstance(said, SwallowedError)
    assert "begin_nested()" in str(said)
    assert said.__cause__ is error


def test_any_other_error_is_said_as_it_is() -> None:
    assert plainly(OTHERS[0]) is OTHERS[0]


def test_the_text_of_a_refusal_holds_no_url_and_says_whether_waiting_helps() -> None:
    assert "check DATABASE_URL" in str(DatabaseAway(OSError("no route")))
    assert not DatabaseAway(OSError()).refused
    assert DatabaseAway(asyncpg.InvalidPasswordError("a")).refused
    assert DatabaseAway(asyncpg.InvalidCatalogNameError("a")).refused
