"""A CSV file that is read in chunks, each from where the last one ended, as long as the file stays the same."""

import hashlib
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jobs.csv_rows import Row, rows_from
from jobs.lines import Lines
from worker.errors import Permanent

BOM = b"\xef\xbb\xbf"
MAX_CHUNK_BYTES = 16 * 1024 * 1024
MAX_TOGETHER = 2_000
"""Rows that a chunk may take beyond its size so as not to part what belongs together."""


class Position(BaseModel):
    """The cursor of an import: where the next row begins, and of which input."""

    model_config = ConfigDict(frozen=True)

    offset: int
    """In bytes, unpacked ones where the file is packed."""
    line: int
    """From 1, the header's."""
    size: int
    """Of the whole file, in bytes."""
    mtime_ns: int
    """As long as size and time are the same the file isn't hashed again."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk of a file."""

    rows: list[Row]
    next: Position | None
    """Where the next chunk begins. None: the file is read."""


def read_rows(
    path: Path,
    header: tuple[str, ...],
    start: Position | None,
    size: int,
    *,
    together: int | None = None,
    max_unpacked: int,
) -> Rows:
    """Read `size` rows from `start`; None: from the beginning, hash and header first. Blocks: call it in a thread.

    together: a column whose adjacent equal values aren't parted; the chunk then may be longer.
    max_unpacked: bytes that a packed file (.gz, .zst) may hold.
    Raises Permanent for a wrong header, for a file that has changed since `start` was made, and for a packed one that
    is broken or holds too much.
    """
    with path.open("rb") as file:
        if start is None:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            lines = Lines(file, path.name, max_unpacked)
            start = _begin(lines, os.fstat(file.fileno()), sha256, path.name, header)
        else:
            lines = Lines(file, path.name, max_unpacked)
            lines.seek(start.offset)
        rows: list[Row] = []
        following = None
        for row in rows_from(lines, start.line, len(header)):
            full = len(rows) >= size or row.offset - start.offset >= MAX_CHUNK_BYTES
            if full and (len(rows) >= size + MAX_TOGETHER or not _belong(rows[-1], row, together)):
                following = row
                break
            rows.append(row)
        unchanged = _unchanged(file, path.name, start)
    if following is None:
        return Rows(rows, None)
    return Rows(rows, unchanged.model_copy(update={"offset": following.offset, "line": following.line}))


def _belong(last: Row, row: Row, column: int | None) -> bool:
    """Whether two rows may be of one whole. A row with a fault tells nothing, so it may."""
    return column is not None and (bool(last.fault or row.fault) or last.fields[column] == row.fields[column])


def _begin(lines: Lines, stat: os.stat_result, sha256: str, name: str, header: tuple[str, ...]) -> Position:
    """The position behind the header."""
    first = lines.take()
    mark = len(BOM) if first.startswith(BOM) else 0
    lines.put_back([first[mark:]])
    row = next(rows_from(lines, 1, len(header)), None)
    if row is None or row.fields != header:
        raise Permanent(f"The file {name!r} doesn't begin with the header {','.join(header)} in UTF-8; add it.")
    line = row.line + max(1, row.raw.count(b"\n"))
    return Position(offset=lines.offset, line=line, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256)


def _unchanged(file: BufferedReader, name: str, start: Position) -> Position:
    """`start`, with the file's time as it is now. Asked after reading: what was read is of the file that was hashed."""
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) == (start.size, start.mtime_ns):
        return start
    file.seek(0)
    if hashlib.file_digest(file, "sha256").hexdigest() != start.sha256:
        raise Permanent(
            f"The file {name!r} changed while it was imported, at line {start.line}; "
            "put it back as it was and replay the job, or import the new one by a job of its own."
        )
    return start.model_copy(update={"mtime_ns": stat.st_mtime_ns})
