"""COPY into a table, on the session's own connection and inside its transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Column, Table, select
from sqlalchemy import Sequence as SequenceDefault
from sqlalchemy.ext.asyncio import AsyncSession

from worker.bulk.target import Target, TargetColumn, columns_of, left_out, refuse_rows_of_no_class, table_of
from worker.bulk.values import Values, adapted
from worker.driver import Driver
from worker.guard import GUARD, Guard


async def copy_rows(
    session: AsyncSession, into: Target, columns: Sequence[TargetColumn], rows: Iterable[Values]
) -> int:
    """Append `rows` by one COPY and return how many there were.

    They are sent as they are iterated over, in PostgreSQL's binary format, so a generator takes no memory.
    Raises the driver's own errors: asyncpg.UniqueViolationError where a row is there already, asyncpg.DataError or
    TypeError for a value that its column can't hold. Nothing of the COPY is then left, and the transaction has failed.
    Raises ValueError where a column that isn't given has a default of SQLAlchemy's, which a COPY would leave NULL, for
    a class that shares its table where the column that tells its rows isn't given, and for a column whose type has a
    `bind_expression`.
    Sent before is a SELECT of no rows: see `settle_types`.
    """
    table = table_of(into)
    chosen = columns_of(table, columns)
    _refuse_defaults(table, chosen)
    refuse_rows_of_no_class(into, chosen)
    driver = await driver_in_transaction(session)
    await settle_types(session, chosen)
    dialect = (await session.connection()).dialect
    tag = await driver.copy_records_to_table(
        table.name,
        schema_name=(await schemas_of(session)).get(table.schema, table.schema),
        columns=[column.name for column in chosen],
        records=cast("Any", adapted(rows, chosen, dialect)),
    )
    return int(tag.rpartition(" ")[2])


def _refuse_defaults(table: Table, given: Sequence[Column[Any]]) -> None:
    for each in left_out(table, given):
        if _is_made_by_sqlalchemy(each):
            raise ValueError(
                f"The column {each.name} of {table.name} has a default of SQLAlchemy's, which PostgreSQL doesn't know; "
                "give its values, or let the server make them (server_default)."
            )


def _is_made_by_sqlalchemy(column: Column[Any]) -> bool:
    is_serial = isinstance(column.default, SequenceDefault) and column.default.optional
    return column.default is not None and column.server_default is None and not is_serial


async def driver_in_transaction(session: AsyncSession) -> Driver:
    """The driver's connection of `session`, whose transaction is open for the driver too.

    SQLAlchemy's adapter opens it with the first statement that it sees. A COPY before that would commit by itself, and
    survive the session's rollback.
    Raises RuntimeError where no transaction can be opened (AUTOCOMMIT), and SessionMisuse in a handler's second task.
    """
    guard: Guard | None = session.info.get(GUARD)
    if guard is not None:
        guard.refuse_other_tasks()
    await session.flush()
    connection = await session.connection()
    driver = cast("Driver", (await connection.get_raw_connection()).driver_connection)
    if not driver.is_in_transaction():
        await connection.execute(select(1))
        if not driver.is_in_transaction():
            raise RuntimeError(
                "Bulk work needs a transaction, and the session's connection is in AUTOCOMMIT; "
                "give the session an engine without that isolation level."
            )
    return driver


async def schemas_of(session: AsyncSession) -> Mapping[str | None, str | None]:
    """The `schema_translate_map` of the session's connection, which SQLAlchemy heeds in its own statements alone."""
    options = await (await session.connection()).run_sync(lambda connection: connection.get_execution_options())
    return options.get("schema_translate_map") or {}


async def settle_types(session: AsyncSession, columns: Sequence[Column[Any]]) -> None:
    """Have the columns' types stay as the driver knows them until the transaction ends.

    asyncpg remembers the types of the tables that it copies into, and never asks again: a COPY after a migration would
    send a float's bytes for a number. A statement is refused where its columns have changed, and SQLAlchemy then has
    every connection forget what it knows. Raises its DBAPIError for that, once; the next attempt succeeds.
    """
    await session.execute(select(*columns).limit(0))
