"""Rows in a temporary table of the transaction, from where one statement takes them.

It is made for one call and goes with the transaction, so it needs no connection of its own behind a pooler in
transaction mode. One that is kept and emptied was no quicker (docs/adr/0017-bulk-writes.md).
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, cast

from sqlalchemy import BigInteger, Column, ColumnElement, FromClause, Select, Table, column, select, table
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import CITEXT, HSTORE, MACADDR, MACADDR8, MONEY, TSVECTOR, distinct_on
from sqlalchemy.ext.asyncio import AsyncSession

from worker.bulk.copying import driver_in_transaction, schemas_of, settle_types
from worker.bulk.values import Values, adapted, plain_type

POSITION = "ratchet_position"
"""The column that counts the rows from 0, as they were given."""
LONGEST_TARGET = 32
NOT_IN_BINARY = (CITEXT, HSTORE, MACADDR, MACADDR8, MONEY, TSVECTOR)
"""Types that the driver can send as texts alone, and a COPY sends no texts."""


async def stage(
    session: AsyncSession,
    target: Table,
    columns: Sequence[Column[Any]],
    rows: Iterable[Values],
    *,
    counted: bool = True,
) -> FromClause:
    """Fill a temporary table that has these columns of `target`, and POSITION if `counted`.

    To scan it finds the rows in the order in which they were given. Another call for the same columns replaces it.
    A column whose type is NOT_IN_BINARY is a text there, and what is returned casts it.
    """
    driver = await driver_in_transaction(session)
    await settle_types(session, columns)
    dialect = (await session.connection()).dialect
    # Named after its target and its columns: the driver remembers the types of a table's columns by name.
    schema = (await schemas_of(session)).get(target.schema, target.schema)
    shape = f"{schema}.{target.name} {counted} {[(each.name, str(each.type)) for each in columns]}"
    name = f"ratchet_{target.name[:LONGEST_TARGET]}_{sha256(shape.encode()).hexdigest()[:16]}"
    quote = dialect.identifier_preparer
    source = quote.quote(target.name) if schema is None else f"{quote.quote(schema)}.{quote.quote(target.name)}"
    as_texts = {each.name for each in columns if isinstance(plain_type(each.type, dialect), NOT_IN_BINARY)}
    quoted = {each.name: quote.quote(each.name) for each in columns}
    own = ", ".join(f"{q}::text as {q}" if each in as_texts else q for each, q in quoted.items())
    staged = quote.quote(name)
    position = f"0::bigint as {POSITION}, " if counted else ""
    # Every name is quoted, and none of them is a value.
    await driver.execute(
        f"drop table if exists pg_temp.{staged}; create temporary table {staged} on commit drop as "  # noqa: S608 - see above
        f"select {position}{own} from {source} with no data"
    )
    given, names = adapted(rows, columns, dialect), [each.name for each in columns]
    fields = [column(each.name, each.type) for each in columns]
    if counted:
        given, names = ((number, *row) for number, row in enumerate(given)), [POSITION, *names]
        fields = [column(POSITION, BigInteger), *fields]
    await driver.copy_records_to_table(name, columns=names, records=cast("Any", given))
    filled = table(name, *fields)
    if not as_texts:
        return filled
    return select(
        *(sql_cast(each, each.type).label(each.name) if each.name in as_texts else each for each in filled.c)
    ).subquery("given")


def last_of_each(
    given: FromClause, columns: Sequence[Column[Any]], key: Sequence[ColumnElement[Any]]
) -> Select[*tuple[Any, ...]]:
    """The last row of each key, as PostgreSQL compares them, in the order of the key. `given` is `counted`."""
    rows = select(*(given.c[each.name] for each in columns)).ext(distinct_on(*key))
    return rows.order_by(*key, given.c[POSITION].desc())
