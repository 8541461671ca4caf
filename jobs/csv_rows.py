"""The rows of a CSV file, with their lines and bytes.

A row that can't be read costs itself alone: its fault is told, and reading goes on at the next line.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

MAX_LINE_BYTES = 64 * 1024
MAX_ROW_LINES = 100
"""A quoted field may hold line breaks; one that isn't closed by then was never meant to be one."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it stands in the file."""

    line: int
    """Where it begins, from 1."""
    offset: int
    """Where it begins, in bytes."""
    raw: bytes
    fields: tuple[str, ...]
    """Without the blanks around them; none where there is a fault."""
    fault: str = ""


class RowUnreadableError(ValueError):
    """The lines can't be a row; the text is the fault."""


def rows_from(file: BufferedReader, line: int, width: int) -> Iterator[Row]:
    """The rows from here on, the first at `line`, without empty lines. The file stands behind the row yielded."""
    while True:
        offset = file.tell()
        first = rest = file.readline(MAX_LINE_BYTES)
        if not first:
            return
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        behind_first = file.tell()
        lines = [first]
        fields: list[str] = []
        fault = ""
        try:
            fields = next(csv.reader(_texts(lines, file), strict=True))
        except UnicodeDecodeError:
            fault = "is not UTF-8"
        except RowUnreadableError as error:
            fault = str(error)
        except csv.Error:  # its own texts are for programmers
            fault = "has misplaced quotes or line breaks"
        if fault:
            # A quote that is never closed must not swallow the rows behind it: the first line alone is bad.
            file.seek(behind_first)
            del lines[1:]
        if fields and len(fields) != width:
            fault = f"has {len(fields)} fields where {width} are expected"
        if fields or fault:
            yield Row(line, offset, b"".join(lines), () if fault else tuple(field.strip() for field in fields), fault)
        line += len(lines)


def _texts(lines: list[bytes], file: BufferedReader) -> Iterator[str]:
    """The lines of one row, as many as the CSV reader asks for; `lines` holds the first and gets the others."""
    while True:
        raw = lines[-1]
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raise RowUnreadableError(f"has a line of {MAX_LINE_BYTES:,} bytes or more")
        if b"\0" in raw:
            raise RowUnreadableError("holds a NUL character")
        yield raw.decode()
        if len(lines) == MAX_ROW_LINES or not (raw := file.readline(MAX_LINE_BYTES)):
            raise RowUnreadableError("has a quoted field that is never closed")
        lines.append(raw)
