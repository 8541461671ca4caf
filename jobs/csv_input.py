"""A CSV file that is read in chunks, each from where the last one ended, as long as the file stays the same."""

import hashlib
import os
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jobs.csv_closing import Closing
from jobs.csv_rows import Row, row_at, rows_from
from jobs.lines import MAX_LINE_BYTES, Lines
from worker.errors import Permanent

BOM = b"\xef\xbb\xbf"
MAX_CHUNK_BYTES = 16 * 1024 * 1024
"""Of a chunk; twice that so as not to part what belongs together."""
FIRST_LINE = 2
"""Behind the header, where that has one line."""
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
    """As long as size and times are the same the file isn't hashed again."""
    sha256: str
    rows: int | None = None
    """How many are before it. None, in a cursor of an earlier version: about as many as lines."""
    ctime_ns: int | None = None
    """Nobody can set this one: what keeps the time of a file (`cp -p`, `rsync -t`, an archive) sets `mtime` alone.
    None, in a cursor of an earlier version: it is hashed once more."""
    parted: bool = False
    """Whether the next row may belong to the one before it, with which a chunk had to end."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk of a file."""

    rows: list[Row]
    next: Position | None
    """Where the next chunk begins. None: the file is read."""
    in_all: int
    """Rows that the file has, as far as what was read of it tells."""


class Reader:
    """A file that is read chunk by chunk. Everything blocks: call it in a thread."""

    def __init__(
        self,
        path: Path,
        header: tuple[str, ...],
        start: Position | None,
        *,
        together: int | None = None,
        max_unpacked: int,
    ) -> None:
        """Opens it at `start`; None: at the beginning, hash and header first.

        together: a column whose adjacent equal values aren't parted; the chunk then may be longer.
        max_unpacked: bytes that a packed file (.gz, .zst) may hold.
        Raises Permanent for a wrong header, and for a packed file that is broken or holds too much.
        """
        self._name = path.name
        self._together = together
        self._following: Row | None = None
        """The first row of the next chunk, which has been read already."""
        self._file = path.open("rb")
        try:
            sha256 = hashlib.file_digest(self._file, "sha256").hexdigest() if start is None else ""
            self._file.seek(0)
            lines = Lines(self._file, path.name, max_unpacked)
            if start is None:
                start = _begin(lines, os.fstat(self._file.fileno()), sha256, path.name, header)
            else:
                lines.seek(start.offset)
        except BaseException:
            self._file.close()
            raise
        self.position: Position | None = start
        """Where the next chunk begins. None: the file is read."""
        self._rows = rows_from(lines, start.line, len(header))

    def close(self) -> None:
        self._file.close()

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> Rows:
        """The next `size` rows. Raises Permanent as the constructor does, and for a file that has changed meanwhile."""
        start, rows, following, belongs = self.position, list[Row](), None, False
        if start is None:
            return Rows([], None, 0)
        for row in chain((self._following,) if self._following else (), self._rows):
            length = row.offset - start.offset
            if row.is_place:
                if length < MAX_CHUNK_BYTES:
                    continue
                following, belongs = row, start.parted if not rows else self._together is not None
                break
            if rows and (len(rows) >= size or length >= MAX_CHUNK_BYTES):
                belongs = _belong(rows[-1], row, self._together)
                if not belongs or len(rows) >= size + MAX_TOGETHER or length >= 2 * MAX_CHUNK_BYTES:
                    following = row
                    break
            rows.append(row)
        share = self._file.tell() / max(1, start.size)
        unchanged = _unchanged(self._file, self._name, start)
        read = len(rows) + (start.line - FIRST_LINE if start.rows is None else start.rows)
        self._following, self.position = None if following and following.is_place else following, None
        if following is None:
            return Rows(rows, None, read)
        place = {"offset": following.offset, "line": following.line, "rows": read, "parted": belongs}
        self.position = unchanged.model_copy(update=place)
        return Rows(rows, self.position, int(read / share))


def _belong(last: Row, row: Row, column: int | None) -> bool:
    """Whether two rows may be of one whole. A row with a fault tells nothing, so it may."""
    return column is not None and (bool(last.fault or row.fault) or last.fields[column] == row.fields[column])


def _begin(lines: Lines, stat: os.stat_result, sha256: str, name: str, header: tuple[str, ...]) -> Position:
    """The position behind the header."""
    first = lines.take()
    mark = len(BOM) if first.startswith(BOM) else 0
    lines.put_back([first[mark:]])
    row, line = None, 1
    while row is None and lines.offset < MAX_LINE_BYTES and lines.has_more():
        row, taken = row_at(lines, line, len(header), Closing(lines))
        line += taken
    if row is None or row.fields != header:
        raise Permanent(f"The file {name!r} doesn't begin with the header {','.join(header)} in UTF-8; add it.")
    return Position(
        offset=lines.offset,
        line=line,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        sha256=sha256,
        rows=0,
    )


def _unchanged(file: BufferedReader, name: str, start: Position) -> Position:
    """`start`, with the times that it has now. Asked after reading: what was read is of the file that was hashed."""
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) == (start.size, start.mtime_ns, start.ctime_ns):
        return start
    place = file.tell()
    file.seek(0)
    is_the_same = hashlib.file_digest(file, "sha256").hexdigest() == start.sha256
    file.seek(place)
    if not is_the_same:
        raise Permanent(
            f"The file {name!r} changed while it was imported, at line {start.line}; "
            "put it back as it was and replay the job, or import the new one by a job of its own."
        )
    return start.model_copy(update={"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns})
