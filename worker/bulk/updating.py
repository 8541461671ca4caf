"""Update many rows, each with values of its own: one UPDATE … FROM over arrays, or over a staged COPY."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum
from itertools import islice
from operator import itemgetter, lt
from typing import Any, TypeAlias, cast

import asyncpg
from sqlalchemy import (
    ARRAY,
    CHAR,
    NCHAR,
    Column,
    CursorResult,
    Date,
    DateTime,
    Dialect,
    FromClause,
    String,
    Table,
    Update,
    Uuid,
    bindparam,
    column,
    func,
    update,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import BIT, CITEXT
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Integer, TypeEngine, UserDefinedType

from worker.bulk.copying import driver_in_transaction
from worker.bulk.staging import last_of_each, stage
from worker.bulk.target import Target, TargetColumn, columns_of, table_of
from worker.bulk.values import NO_ROWS, Values, adapted, no_row, plain_type, wrong_length
from worker.driver import Driver

Columns: TypeAlias = Sequence[Column[Any]]
Span: TypeAlias = tuple[int, int]

STAGED_FROM = 5_000
"""Rows of a call. 100,000 rows in calls of 3,000 took 0.69 s of processor time through arrays and 0.81 s through a
staged COPY, in calls of 10,000 0.73 and 0.65 s, in one call 0.76 and 0.60 s (docs/adr/0017-bulk-writes.md)."""


async def update_many(
    session: AsyncSession, table: Target, columns: Sequence[TargetColumn], rows: Iterable[Values]
) -> int:
    """Set values of rows by their primary key and return how many rows were found.

    columns: the primary key's, and those to set. Of several rows with one key, as PostgreSQL compares keys, the last
    wins; unknown keys are skipped.

    Sent is one UPDATE … FROM, over an array a column, or over a temporary table that a COPY fills: from STAGED_FROM
    rows on, for a column that fits into no array, and for a key that only PostgreSQL can compare (citext). Before and
    after it comes a statement that holds the planner to a join in the order of the key, and lets go of it. So rows are
    locked in that order, and of two such updates of the same rows one waits for the other, never in a circle.
    All rows are in memory at once. Those that come in the order of their key aren't sorted.
    Raises ValueError or TypeError for wrong columns and rows, the driver's own errors where it can't send a value to
    the temporary table, and SQLAlchemy's.
    """
    target = table_of(table)
    chosen = columns_of(target, columns)
    key = list(target.primary_key.columns)
    new = [each for each in chosen if each not in key]
    if not key or not new or any(each not in chosen for each in key) or len(set(chosen)) < len(chosen):
        names = ", ".join(each.name for each in key)
        raise ValueError(f"An update of {target.name} needs each column of its primary key ({names}) and one to set.")
    driver = await driver_in_transaction(session)
    given = _listed(chosen, rows)
    if not given:
        return 0
    arrays: Mapping[str, Values] = {}
    span: Span | None = None
    dialect = (await session.connection()).dialect
    if not all(_is_the_same_to_python(each.type, dialect) for each in key):
        staged = await stage(session, target, chosen, given)
        last = last_of_each(staged, chosen, [staged.c[each.name] for each in key])
        statement = _update(target, chosen, last.subquery("given"))
    elif len(given) >= STAGED_FROM or any(_fits_no_array(each.type, dialect) for each in chosen):
        given = _in_order(chosen, key, given)
        statement = _update(target, chosen, await stage(session, target, chosen, given, counted=False))
        if span := _dense_span(chosen, key, given):
            statement = statement.where(key[0].between(*span))
    else:
        statement, arrays = _from_arrays(target, chosen, _in_order(chosen, key, given), dialect)
    async with _in_key_order(driver, merging=span is not None):
        return cast("CursorResult[Any]", await session.execute(statement, arrays)).rowcount


def _listed(columns: Columns, rows: Iterable[Values]) -> list[Values]:
    given = list(rows)
    if set(map(len, given)) - {len(columns)}:
        raise wrong_length(len(columns))
    for kind in set(map(type, given)):
        if issubclass(kind, NO_ROWS):
            raise no_row(kind.__name__)
    return given


def _is_the_same_to_python(kind: TypeEngine[Any], dialect: Dialect) -> bool:
    """Whether Python holds the same two values equal as PostgreSQL does, and can sort them.

    Not those of char(n), where blanks at the end are nothing, of citext, of a collation that tells no case, of a number
    that is rounded, of what Python converts before it is sent, and of a UUID that is written as a text.
    """
    plain = kind.dialect_impl(dialect)
    if isinstance(plain, Uuid):
        return plain.as_uuid
    if isinstance(plain, String):
        return plain.collation is None and not isinstance(plain, CHAR | NCHAR | CITEXT)
    return isinstance(plain, Integer | Date | DateTime) and getattr(plain, "precision", None) is None


def _in_order(columns: Columns, key: Columns, given: list[Values]) -> list[Values]:
    """The rows sorted by key, the last of each. In the statement this took the server 0.04 s more for 100,000 rows."""
    key_of = itemgetter(*(columns.index(each) for each in key))
    keys: list[Any] = list(map(key_of, given))
    if any(isinstance(each.type, EnumType) for each in key):
        keys = list(map(_named, keys))
    if all(map(lt, keys, islice(keys, 1, None))):
        return given
    last = dict(zip(keys, given, strict=True))
    return [last[each] for each in sorted(last)]


def _named(key: object) -> Any:
    """An enum's members have no order, and their names have."""
    if isinstance(key, tuple):
        return tuple(map(_named, cast("tuple[object, ...]", key)))
    return key.name if isinstance(key, Enum) else key


def _fits_no_array(kind: TypeEngine[Any], dialect: Dialect) -> bool:
    """unnest makes one row of each value of an array of arrays, the driver takes a multirange for an array, and a cast
    to bit(3) cuts.
    """
    return isinstance(plain_type(kind, dialect), ARRAY | BIT | AbstractMultiRange)


def _from_arrays(
    target: Table, columns: Columns, rows: Sequence[Values], dialect: Dialect
) -> tuple[Update, Mapping[str, Values]]:
    """The statement, and what it is given."""
    by_column = zip(*adapted(rows, columns, dialect), strict=True)
    arrays = {f"column_{number}": values for number, values in enumerate(by_column)}
    types = [_ArrayOf(_uncut(each.type.compile(dialect=dialect))) for each in columns]
    parameters = [bindparam(name, type_=kind) for name, kind in zip(arrays, types, strict=True)]
    fields = [column(each.name, each.type) for each in columns]
    return _update(target, columns, func.unnest(*parameters).table_valued(*fields).render_derived("given")), arrays


class _ArrayOf(UserDefinedType[Values]):
    """An array that goes to the driver as it is: SQLAlchemy's own would go through all values in Python."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, of: str) -> None:
        self.of = of

    def get_col_spec(self, **_options: Any) -> str:
        return f"{self.of}[]"


UNCUT = {"VARCHAR": "TEXT", "CHAR": "TEXT", "NCHAR": "TEXT", "BIT": "BIT VARYING", "BIT VARYING": "BIT VARYING"}
"""Types with a length, and what takes any."""


def _uncut(kind: str) -> str:
    """A cast to varchar(3), or char, would cut a text that is too long, where an assignment refuses it."""
    kind = kind.partition(" COLLATE ")[0]  # the column's own holds, and an array's type can't name one
    return UNCUT.get(kind.partition("(")[0], kind)


def _update(target: Table, columns: Columns, given: FromClause) -> Update:
    key = target.primary_key.columns
    statement = update(target).where(*(each == given.c[each.name] for each in key))
    return statement.values({each: given.c[each.name] for each in columns if each.name not in key})


def _dense_span(columns: Columns, key: Columns, rows: Sequence[Values]) -> Span | None:
    """The first and the last key, where a merge join is quicker than a loop over the rows, and as sure of its order.

    It walks along the index from one to the other, so no more than every second key may be missing. It would take texts
    in the order of their collation, which isn't Python's, and maybe the second of two columns first.
    """
    if len(key) > 1 or not isinstance(key[0].type, Integer):
        return None
    first, last = (row[columns.index(key[0])] for row in (rows[0], rows[-1]))
    is_dense = isinstance(first, int) and isinstance(last, int) and last - first < 2 * len(rows)
    return (first, last) if is_dense else None


_SET = """
select current_setting(name), set_config(name, value, true)
from unnest($1::text[], $2::text[]) as given (name, value)
"""


@asynccontextmanager
async def _in_key_order(driver: Driver, *, merging: bool) -> AsyncGenerator[None]:
    """Leave the planner one kind of join, whose order is known, and the index to look into.

    Where the statement fails in PostgreSQL, the settings go with the transaction, or with its savepoint.
    Where it fails in the driver, which can't send a value, the transaction goes on, and must be set back too.
    """
    allowed = {"seqscan": False, "hashjoin": False, "mergejoin": merging, "nestloop": not merging}
    names, values = [f"enable_{kind}" for kind in allowed], ["on" if each else "off" for each in allowed.values()]
    before = await driver.fetch(_SET, names, values)
    try:
        yield
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
            await driver.execute(_SET, names, [value for value, _ in before])
