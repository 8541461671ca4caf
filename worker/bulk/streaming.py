"""Many rows out of PostgreSQL in flat memory: to a handler through a cursor, to a file as PostgreSQL writes them.

Each is one statement in the session's own transaction, so it sees one snapshot however long it takes.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, TypeAlias, TypeVarTuple
from typing import cast as cast_type

from sqlalchemy import BindParameter, ColumnElement, Row, Select, Text, cast, func, select
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.sql import visitors
from sqlalchemy.types import TypeEngine

from worker.bulk.copying import driver_in_transaction, schemas_of
from worker.errors import Permanent
from worker.shield import in_thread

Ts = TypeVarTuple("Ts")
AnySelect: TypeAlias = Select[*tuple[Any, ...]]
Write: TypeAlias = Callable[[bytes], object]
"""Takes whole lines. It is called in a thread, one call at a time, so it may block."""

ROWS_A_FETCH = 1_000
PIECE_BYTES = 1024 * 1024
"""How much is gathered for one call of `write`: a thread costs 50 us, which is little beside so many bytes."""

ONE_LINE = {
    *("bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bpchar", "uuid", "jsonb"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval"),
}
"""PostgreSQL's own types that have no line break in JSON, where a text has a backslash and an n."""


async def stream(
    session: AsyncSession, statement: Select[*Ts], *, size: int = ROWS_A_FETCH
) -> AsyncGenerator[Sequence[Row[*Ts]]]:
    """The rows of any select, `size` at a time (the last ones may be fewer); no more of them are in memory.

    Sent: BEGIN where no transaction is open, the pending changes (as `session.execute` does), the statement, then two
    fetches for every `size` rows, since SQLAlchemy's adapter asks for 50 first. Columns come without the ORM, which is
    five times as fast as entities; those come too. Other statements of the session may run between two batches: the
    cursor doesn't see what they change.

    Batches, since to hand out each row by itself takes a tenth of the rate (0.3 us a row, where all else takes 2.3).
    """
    if session.autoflush:
        await session.flush()
    source: AsyncConnection | AsyncSession = session if _has_entities(statement) else await session.connection()
    result = await source.stream(statement, execution_options={"yield_per": size})
    async for rows in result.partitions():
        yield rows


async def copy_csv(
    session: AsyncSession,
    statement: AnySelect,
    write: Write,
    *,
    header: bool = True,
    piece_bytes: int = PIECE_BYTES,
) -> int:
    """Have PostgreSQL write a select's rows as CSV in UTF-8, and return how many there were.

    Sent: BEGIN where no transaction is open, the pending changes, and COPY (…) TO STDOUT. Lines end with LF; nothing
    stands for null, and "" for an empty text; times are in the session's TimeZone and DateStyle. Values of the
    statement stand in it as literals, which SQLAlchemy quotes.
    `write` gets pieces of about `piece_bytes`. Raises Permanent for a value that SQLAlchemy can't write as a literal.
    """
    return await _copy(session, statement, write, piece_bytes, header=header)


async def copy_ndjson(
    session: AsyncSession,
    statement: AnySelect,
    write: Write,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> int:
    """The same with a JSON object a line, as `row_to_json` makes it: times are ISO 8601 in the session's TimeZone.

    JSON has no raw control characters, but for tabs and line breaks between tokens, which a `json` column keeps; the
    line breaks become spaces. So with two others for quote and delimiter CSV quotes and escapes nothing.
    Sent before is the preparation of the statement, which tells the columns' types.
    """
    line: ColumnElement[str] = cast(func.row_to_json(statement.subquery("rows").table_valued()), Text)
    if await _may_break_lines(session, statement):
        for line_break in "\n\r":
            line = func.replace(line, line_break, " ")  # `translate` would take three times as long as the whole rest
    return await _copy(session, select(line), write, piece_bytes, quote="\x01", delimiter="\x02")


async def _may_break_lines(session: AsyncSession, statement: AnySelect) -> bool:
    """Asked of PostgreSQL, since a column that is mapped as a text may be `json` there.

    To look for line breaks that can't be there takes a fifth of the server's time.
    """
    driver = await driver_in_transaction(session)
    # Without a name it stays with no server that PgBouncer lends.
    prepared = await driver.prepare(await _literally(session, statement), name="")
    types = [column.type for column in prepared.get_attributes()]
    return any(kind.schema != "pg_catalog" or kind.name not in ONE_LINE for kind in types)


async def _copy(session: AsyncSession, statement: AnySelect, write: Write, piece_bytes: int, **form: Any) -> int:
    driver = await driver_in_transaction(session)
    query = await _literally(session, statement)
    gathered: list[bytes] = []
    size = 0

    async def take(lines: bytes) -> None:
        nonlocal size
        gathered.append(lines)
        size += len(lines)
        if size >= piece_bytes:
            await give()

    async def give() -> None:
        nonlocal size
        piece, size = b"".join(gathered), 0
        gathered.clear()
        await in_thread(write, piece)

    # PostgreSQL sends each row as a message of its own and asyncpg passes on whole messages, so no line is parted.
    tag = await driver.copy_from_query(query, output=take, format="csv", **form)
    if gathered:
        await give()
    return int(tag.removeprefix("COPY "))


async def _literally(session: AsyncSession, statement: AnySelect) -> str:
    """COPY takes no parameters."""
    if any(map(_reads_otherwise, visitors.iterate(statement))):
        raise Permanent(
            "COPY takes no parameters, and SQLAlchemy's literal of bytes, of a timedelta, of NaN and infinity, or "
            "of the first and the last date is another value than the parameter; cast a text to its type."
        )
    schemas: dict[str, Any] = {}
    if names := statement.get_execution_options().get("schema_translate_map") or await schemas_of(session):
        schemas = {"schema_translate_map": names, "render_schema_translate": True}
    dialect = (await session.connection()).dialect
    try:
        return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}, **schemas))
    except CompileError:  # its text has the value
        raise Permanent(
            "COPY takes no parameters, and SQLAlchemy can't write a value of this statement as a literal; "
            "cast a text to its type."
        ) from None


INFINITIES = (date.min, date.max, datetime.min, datetime.max)  # noqa: DTZ901 - these alone, and none of a zone
"""What the driver sends as -infinity and infinity."""


def _reads_otherwise(element: object) -> bool:
    """Bytes are written as bytea's text, which has escapes; a timedelta in seconds, which makes no days."""
    if not isinstance(element, BindParameter):
        return False
    given: Any = element.effective_value  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # of any type
    return any(
        isinstance(value, bytes | bytearray | timedelta)
        or (isinstance(value, float | Decimal) and not isfinite(value))
        or (isinstance(value, date) and value in INFINITIES)
        for value in _each(given)
    )


def _each(given: Any) -> Iterator[object]:
    """The values of a list, or of lists in it; what is no list is one itself."""
    if isinstance(given, list | tuple):
        for value in cast_type("Iterable[object]", given):
            yield from _each(value)
    else:
        yield given


def _has_entities(statement: AnySelect) -> bool:
    return not all(isinstance(column["type"], TypeEngine) for column in statement.column_descriptions)
