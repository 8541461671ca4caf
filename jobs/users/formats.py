"""The file formats of users.export. Each writes a select's rows into a file, and returns how many there were."""

import importlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from sqlalchemy import Boolean, ColumnElement, DateTime, Text, cast
from sqlalchemy.ext.asyncio import AsyncSession

from worker.bulk import AnySelect, copy_csv, copy_ndjson
from worker.bulk.streaming import Write
from worker.errors import Permanent
from worker.whole import in_threads

COLUMNS = ("id", "email", "name", "is_active", "last_seen_at", "created_at")

ROW_GROUP_BYTES = 4 * 1024 * 1024
"""Of CSV, before it is Parquet: some 50,000 users."""


async def _csv(session: AsyncSession, rows: AnySelect, file: BinaryIO) -> int:
    """UTF-8 with a header; times as in RFC 3339 with a space, true or false, nothing for null. Lines end with LF."""
    # Its own columns, and none of a subquery: each row would go through one more node of the plan.
    return await copy_csv(session, rows.with_only_columns(*map(_readable, rows.selected_columns)), file.write)


def _readable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """PostgreSQL writes t and f, and +00 for UTC, which many readers don't take. A T for the space would cost a third
    of the rate.
    """
    name = getattr(column, "name", None)
    if isinstance(column.type, Boolean):
        return cast(column, Text).label(name)
    if isinstance(column.type, DateTime):
        return (cast(column, Text) + ":00").label(name)
    return column


async def _ndjson(session: AsyncSession, rows: AnySelect, file: BinaryIO) -> int:
    """One JSON object a line; times in ISO 8601."""
    return await copy_ndjson(session, rows, file.write)


async def _parquet(session: AsyncSession, rows: AnySelect, file: BinaryIO) -> int:
    """Raises Permanent where pyarrow isn't installed."""
    async with in_threads(_row_groups(file)) as write:
        return await copy_csv(session, rows, write, header=False, piece_bytes=ROW_GROUP_BYTES)


@contextmanager
def _row_groups(file: BinaryIO) -> Generator[Write]:
    """What makes a row group of lines of CSV: Arrow reads them faster than Python makes values of rows.

    pyarrow is an extra, and has no types.
    """
    try:
        arrow: Any = importlib.import_module("pyarrow")
        reader: Any = importlib.import_module("pyarrow.csv")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise Permanent("Parquet needs pyarrow; install it, or export as csv or ndjson.") from None
    time = arrow.timestamp("us", tz="UTC")
    types = (arrow.int64(), arrow.string(), arrow.string(), arrow.bool_(), time, time)
    schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
    parse = reader.ParseOptions(newlines_in_values=True)
    convert = reader.ConvertOptions(
        column_types=schema,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        true_values=["t"],
        false_values=["f"],
    )

    def write(lines: bytes) -> None:
        read = reader.ReadOptions(column_names=COLUMNS, use_threads=False, block_size=len(lines))
        writer.write_table(reader.read_csv(arrow.BufferReader(lines), read, parse, convert))

    with parquet.ParquetWriter(file, schema) as writer:
        yield write


FORMATS: Mapping[str, Callable[[AsyncSession, AnySelect, BinaryIO], Awaitable[int]]] = {
    "csv": _csv,
    "ndjson": _ndjson,
    "parquet": _parquet,
}
