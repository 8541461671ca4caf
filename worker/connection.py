"""A connection of the pool for one attempt: the driver begins and commits, and nothing is left behind.

Through SQLAlchemy the first statement of a transaction costs twice what the driver takes for it, and so does its
commit (59 against 33 us for both, in one run). So the runtime begins and commits there, and SQLAlchemy's adapter is
told: it keeps asyncpg's transaction in a private attribute, which this module alone touches
(tests/runtime/test_begin.py holds it to what SQLAlchemy's own begin does).
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.database import RuntimePool
from worker.driver import Driver
from worker.guard import GUARD, Guard
from worker.handler import Isolation
from worker.pipelining import DirectConnection
from worker.shield import to_its_end


class connected:  # noqa: N801 - it is used as a function, and a generator would cost more than what it does
    """A connection whose transaction is rolled back unless it was committed, whoever is cancelled meanwhile.

    Where the connection is gone, so is the transaction; that hides nothing of what was raised within.
    """

    def __init__(self, engine: AsyncEngine, guard: Guard) -> None:
        self._engine = engine
        self._guard = guard

    async def __aenter__(self) -> AsyncConnection:
        self._connection = connection = await _take(self._engine)
        put_on(connection.sync_connection, self._guard)  # type: ignore[arg-type]  # it is connected
        return connection

    async def __aexit__(self, *_raised: object) -> None:
        connection = self._connection
        if connection.invalidated or connection.in_transaction() or driver_of(connection).is_in_transaction():
            with suppress(DBAPIError):
                await to_its_end(_give_up(connection))
        elif isinstance(self._engine.pool, RuntimePool):
            connection.sync_connection.close()  # type: ignore[union-attr]  # it is connected
        else:
            await connection.close()


async def _take(engine: AsyncEngine) -> AsyncConnection:
    """From the pool. What lies in the runtime's own needs no greenlet: with two of them it takes almost three times as
    long to take a connection and to give it back (36 against 14 us, measured in one run).
    """
    if isinstance(engine.pool, RuntimePool) and engine.pool.checkedin():
        try:
            return AsyncConnection(engine, engine.sync_engine.connect())
        except MissingGreenlet:
            pass  # what lay there has to be connected anew
    return await engine.connect()


def put_on(connection: Connection, guard: Guard) -> None:
    """Let `guard` see what is asked on a connection, by SQLAlchemy or by the driver, until it goes back to the pool."""
    if (info := connection.connection.record_info) is not None:  # it is none of a connection that left the pool
        info[GUARD] = guard
    if isinstance(connection.engine.pool, RuntimePool):  # an engine of somebody else's, in tests, has another driver
        driver: Any = connection.connection.driver_connection
        driver.guard = guard


@contextmanager
def watched(connection: Connection, guard: Guard) -> Generator[None]:
    """Let `guard` see what is asked on a connection that stays its caller's."""
    put_on(connection, guard)
    try:
        yield
    finally:
        if not connection.closed and not connection.invalidated:  # else the pool has seen to it
            if (info := connection.connection.record_info) is not None:
                info.pop(GUARD, None)
            if isinstance(connection.engine.pool, RuntimePool):
                driver: Any = connection.connection.driver_connection
                driver.guard = None


async def _give_up(connection: AsyncConnection) -> None:
    """Roll back and close. One that the driver has lost, or that SQLAlchemy takes for ended, is thrown away."""
    if not connection.invalidated and (driver_of(connection).is_closed() or not connection.in_transaction()):
        await connection.invalidate()
    await connection.close()


async def begin(connection: AsyncConnection, isolation: Isolation) -> Driver:
    """Begin the transaction of a connection that has none, and return the driver's side of it."""
    adapter = _adapter(connection)
    driver: Driver = adapter.driver_connection
    transaction = driver.transaction(isolation=_ISOLATION[isolation])
    connection.sync_connection.begin()  # type: ignore[union-attr]  # as above; SQLAlchemy's own side, which asks nothing
    try:
        await transaction.start()
    except BaseException:
        # asyncpg would take the next transaction of this connection for a savepoint of the one that didn't begin.
        await to_its_end(connection.invalidate())
        raise
    adapter._transaction = transaction  # noqa: SLF001 - see above
    return driver


async def begin_with(connection: AsyncConnection, isolation: Isolation, query: str, *args: Any) -> Any:
    """Begin as `begin` does, and return the first row of the statement that the transaction begins with, if any.

    Both go to the server at once, where nothing stands between. Where the statement raises, the transaction is open.
    """
    driver: Any = driver_of(connection)
    if type(driver) is not DirectConnection:  # asyncpg lets isinstance say yes to any of its connections
        await begin(connection, isolation)
        return await driver.fetchrow(query, *args)
    driver.hold_back_begin()
    await begin(connection, isolation)
    return await driver.first(query, *args)


async def commit(connection: AsyncConnection) -> None:
    """Commit the transaction of a connection. Raises what SQLAlchemy's own commit does."""
    adapter = _adapter(connection)
    transaction, adapter._transaction = adapter._transaction, None  # noqa: SLF001 - see above
    if transaction is not None:
        try:
            await transaction.commit()
        except Exception as error:  # noqa: BLE001 - it is raised again
            adapter._transaction = _Failed(error)  # noqa: SLF001 - see above
            await connection.commit()
    connection.sync_connection.commit()  # type: ignore[union-attr]  # as above; SQLAlchemy's own side


class _Failed:
    """Stands for a transaction whose commit has raised, so that SQLAlchemy raises it in its own terms."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def commit(self) -> None:
        raise self._error

    rollback = commit


_ISOLATION: dict[Isolation, Any] = {
    "READ COMMITTED": "read_committed",
    "REPEATABLE READ": "repeatable_read",
    "SERIALIZABLE": "serializable",
}


def driver_of(connection: AsyncConnection) -> Driver:
    """The driver's side of a connection."""
    driver: Driver = _adapter(connection).driver_connection
    return driver


def _adapter(connection: AsyncConnection) -> Any:
    return connection.sync_connection.connection.dbapi_connection  # type: ignore[union-attr]  # it is connected
