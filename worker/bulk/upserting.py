"""Insert what is new and update what is there: one COPY, and one INSERT … SELECT … ON CONFLICT."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Boolean, Column, ColumnElement, Dialect, FromClause, Row, Table, func, literal_column, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.visitors import replacement_traverse

from worker.bulk.staging import last_of_each, stage
from worker.bulk.target import Target, TargetColumn, columns_of, left_out, refuse_rows_of_no_class, table_of
from worker.bulk.values import Values

NO_LOCKER = literal_column("xmax = 0", Boolean)
"""A row version that this statement made anew has no xmax; one that it updated was locked first, and has."""
NO_OLD_ROW = literal_column("old.ctid is null", Boolean)
"""The same for PostgreSQL 18, of a table in partitions too, whose xmax no INSERT can return."""


@dataclass(frozen=True, slots=True)
class Upserted:
    """What one upsert did. A key that was given twice counts once."""

    inserted: int
    updated: int
    rows: Sequence[Row[*tuple[Any, ...]]] = ()
    """Of each row the columns of `returning`, and `inserted` (bool). Empty unless they were asked for."""


async def upsert(
    session: AsyncSession,
    into: Target,
    columns: Sequence[TargetColumn],
    rows: Iterable[Values],
    *,
    key: Sequence[TargetColumn | ColumnElement[Any]],
    also: Mapping[TargetColumn, Any] | None = None,
    returning: Sequence[TargetColumn] = (),
) -> Upserted:
    """Insert `rows`, or update those whose key is there already; of several rows with one key the last wins.

    key: what a unique index is over, columns or expressions (`func.lower(User.email)`) of `columns`, not null.
    also: what to set, beside the given columns or in their place, in a row that was there already.

    Sent are a COPY into a temporary table and one INSERT … SELECT … ON CONFLICT, which takes the rows in the order of
    their key, so that two upserts never wait for each other in a circle. Raises the driver's errors for a value that
    its column can't hold, and SQLAlchemy's for the INSERT: before PostgreSQL 18 for any table in partitions. Raises
    ValueError where a column that isn't given has a default that Python makes (all new rows would have the same), or
    tells the rows of a class from others in its table. What a column sets at each update (`onupdate`) isn't set here;
    name it in `also`.
    """
    table = table_of(into)
    chosen = columns_of(table, columns)
    _refuse_defaults(table, chosen)
    refuse_rows_of_no_class(into, chosen)
    given = await stage(session, table, chosen, rows)
    statement = _statement(table, chosen, given, [_plain(part) for part in key], also or {})
    is_new = _is_new(table, (await session.connection()).dialect).label("inserted")
    if returning:
        answer = statement.returning(*columns_of(table, returning), is_new)
        found = (await session.execute(answer)).all()
        inserted = sum(row.inserted for row in found)
        return Upserted(inserted, len(found) - inserted, found)
    done = statement.returning(is_new).cte("done")
    count = select(func.count().filter(done.c.inserted), func.count()).select_from(done)
    inserted, total = (await session.execute(count)).one()
    return Upserted(inserted, total - inserted)


def _statement(
    table: Table,
    columns: Sequence[Column[Any]],
    given: FromClause,
    key: Sequence[ColumnElement[Any]],
    also: Mapping[TargetColumn, Any],
) -> Insert:
    over = [_of(given, part) for part in key]
    statement = insert(table).from_select([column.key for column in columns], last_of_each(given, columns, over))
    fixed = {part.name for part in key if isinstance(part, Column)}
    # To set a plain column of the key would take a stronger lock. Where there is nothing else, it is set all the same,
    # so that the row is locked and counted.
    changed = [column for column in columns if column.name not in fixed] or columns
    new = {column.key: statement.excluded[column.key] for column in changed}
    if also:
        new |= zip((column.key for column in columns_of(table, list(also))), also.values(), strict=True)
    return statement.on_conflict_do_update(index_elements=key, set_=new)


def _refuse_defaults(table: Table, given: Sequence[Column[Any]]) -> None:
    for each in left_out(table, given):
        if each.default is not None and each.default.is_callable:
            raise ValueError(
                f"The column {each.name} of {table.name} has a default that Python makes, once for all rows of an "
                "upsert; give its values, or let the server make them (server_default)."
            )


def _is_new(table: Table, dialect: Dialect) -> ColumnElement[bool]:
    """Beside a table of that name `old` would be the table."""
    has_old = (dialect.server_version_info or ()) >= (18,) and table.name != "old"
    return NO_OLD_ROW if has_old else NO_LOCKER


def _plain(part: "TargetColumn | ColumnElement[Any]") -> ColumnElement[Any]:
    return part.expression if isinstance(part, InstrumentedAttribute) else part


def _of(given: FromClause, expression: ColumnElement[Any]) -> ColumnElement[Any]:
    """The same expression over the temporary table's columns."""

    def replaced(element: Any, **_options: Any) -> Any:
        if not isinstance(element, Column):
            return None
        if element.name not in given.c:
            raise ValueError(f"The key of an upsert has {element}, which the rows don't; give it with the columns.")
        return given.c[element.name]

    over_given: ColumnElement[Any] = replacement_traverse(expression, {}, replaced)
    return over_given
