"""The file formats of users.export. Each opens as what writes batches of rows to a file."""

import csv
import importlib
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, BinaryIO, TypeAlias

from pydantic_core import to_json

from worker.errors import Permanent

COLUMNS = ("id", "email", "name", "is_active", "last_seen_at", "created_at")

UserRow: TypeAlias = tuple[int, str, str, bool, datetime | None, datetime]
Write: TypeAlias = Callable[[Sequence[UserRow]], None]


@contextmanager
def _csv(file: BinaryIO) -> Generator[Write]:
    """UTF-8 with a header; times in ISO 8601, true or false, nothing for null."""
    file.write(f"{','.join(COLUMNS)}\r\n".encode())

    def write(rows: Sequence[UserRow]) -> None:
        text = io.StringIO(newline="")
        out = csv.writer(text)
        for user_id, email, name, is_active, last_seen_at, created_at in rows:
            seen = last_seen_at.isoformat() if last_seen_at else ""
            out.writerow((user_id, email, name, str(is_active).lower(), seen, created_at.isoformat()))
        file.write(text.getvalue().encode())

    yield write


@contextmanager
def _ndjson(file: BinaryIO) -> Generator[Write]:
    """One JSON object a line."""

    def write(rows: Sequence[UserRow]) -> None:
        file.writelines(to_json(dict(zip(COLUMNS, row, strict=True))) + b"\n" for row in rows)

    yield write


@contextmanager
def _parquet(file: BinaryIO) -> Generator[Write]:
    """Raises Permanent where pyarrow isn't installed: it is an extra, and has no types."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise Permanent("Parquet needs pyarrow; install ratchet[parquet], or export as csv or ndjson.") from None
    time = arrow.timestamp("us", tz="UTC")
    types = (arrow.int64(), arrow.string(), arrow.string(), arrow.bool_(), time, time)
    schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))

    def write(rows: Sequence[UserRow]) -> None:
        columns = [arrow.array(values, type=kind) for values, kind in zip(zip(*rows, strict=True), types, strict=True)]
        writer.write_batch(arrow.record_batch(columns, schema=schema))

    with parquet.ParquetWriter(file, schema) as writer:
        yield write


FORMATS: Mapping[str, Callable[[BinaryIO], AbstractContextManager[Write]]] = {
    "csv": _csv,
    "ndjson": _ndjson,
    "parquet": _parquet,
}
