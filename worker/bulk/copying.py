"""COPY into a table, on the session's own connection and inside its transaction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias, cast

from sqlalchemy import Column, Dialect, Table, bindparam, select
from sqlalchemy import Sequence as SequenceDefault
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute
from sqlalchemy.types import TypeDecorator, TypeEngine

from worker.driver import Driver
from worker.guard import GUARD, Guard

Target: TypeAlias = Table | type[DeclarativeBase]
"""A table, or the class that is mapped to it."""
TargetColumn: TypeAlias = Column[Any] | InstrumentedAttribute[Any]
"""A column of it, as the table or the class has it."""
Values: TypeAlias = Sequence[Any]
"""A row: a value for each column, in their order."""
NO_ROWS = (Mapping, AbstractSet, str, bytes)
"""What has a length too, but gives other things one by one: a mapping its keys, a text its letters."""


async def copy_rows(
    session: AsyncSession, into: Target, columns: Sequence[TargetColumn], rows: Iterable[Values]
) -> int:
    """Append `rows` by one COPY and return how many there were.

    They are sent as they are iterated over, in PostgreSQL's binary format, so a generator takes no memory.
    Raises the driver's own errors: asyncpg.UniqueViolationError where a row is there already, asyncpg.DataError or
    TypeError for a value that its column can't hold. Nothing of the COPY is then left, and the transaction has failed.
    Raises ValueError where a column that isn't given has a default of SQLAlchemy's, which a COPY would leave NULL, and
    for a column whose type has a `bind_expression`.
    Sent before is a SELECT of no rows: see `settle_types`.
    """
    table = table_of(into)
    chosen = columns_of(table, columns)
    _refuse_defaults(table, chosen)
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


def plain_type(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """What stands behind a TypeDecorator or a domain."""
    plain: Any = kind.dialect_impl(dialect)
    while isinstance(plain, TypeDecorator | DOMAIN):
        plain = plain.data_type if isinstance(plain, DOMAIN) else plain.impl_instance
    return cast("TypeEngine[Any]", plain)


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


def table_of(target: Target) -> Table:
    return target if isinstance(target, Table) else cast("Table", target.__table__)


def columns_of(table: Table, columns: Sequence[TargetColumn]) -> list[Column[Any]]:
    """The table's own. Raises ValueError for none, and for one of another table."""
    by_name = {column.name: column for column in table.columns}
    given = [cast("Column[Any]", column.expression) for column in columns]
    if not given:
        raise ValueError(f"Bulk work on {table.name} got no columns; name those that each row has.")
    for column in given:
        own = by_name.get(column.name)
        if own is None or not (column.shares_lineage(own) or _name_of_table(column) in {None, table.fullname}):
            raise ValueError(f"The table {table.name} has no column {str(column)!r}; give columns of that table.")
    return [by_name[column.name] for column in given]


def _name_of_table(column: Column[Any]) -> str | None:
    """None of a column that says of none. The same table may stand in another MetaData."""
    return getattr(column.table, "fullname", None)


def left_out(table: Table, given: Sequence[Column[Any]]) -> list[Column[Any]]:
    """The table's columns that aren't `given`."""
    chosen = set(given)  # `in` a list would ask the columns' own `==`
    return [column for column in table.columns if column not in chosen]


def adapted(rows: Iterable[Values], columns: Sequence[Column[Any]], dialect: Dialect) -> Iterable[Values]:
    """`rows` as the driver takes them: where a column's type converts its values (enums, JSON, your own), so do we.

    Raises ValueError, as they are iterated over, where a row has another number of values (the driver would leave out
    what is too much), and TypeError for one of NO_ROWS. Raises ValueError at once for a type that has SQL around its
    values, which are no part of a statement here.
    """
    for column in columns:
        if column.type.dialect_impl(dialect).bind_expression(bindparam(None)) is not None:
            raise ValueError(
                f"The type of {column} has a bind_expression, which only a statement of SQLAlchemy's applies; have "
                "Python convert its values (process_bind_param), or write them by session.execute."
            )
    processors = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns]
    counted = _counted(rows, len(columns))
    if not any(processors):
        return counted
    return (
        [process(value) if process else value for process, value in zip(processors, row, strict=True)]
        for row in counted
    )


def _counted(rows: Iterable[Values], values: int) -> Iterator[Values]:
    for row in rows:
        if len(row) != values:
            raise wrong_length(values)
        if type(row) is not tuple and isinstance(row, NO_ROWS):
            raise no_row(type(row).__name__)
        yield row


def wrong_length(values: int) -> ValueError:
    return ValueError(f"A row has another number of values than there are columns ({values}).")


def no_row(kind: str) -> TypeError:
    return TypeError(f"A row is a {kind}; give its values in the order of the columns, as a tuple.")
