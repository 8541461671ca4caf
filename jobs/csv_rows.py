"""The rows of a CSV file, with their lines and bytes.

A row that can't be read costs itself alone: its fault is told, and reading goes on at the next line.
"""

import csv
from collections.abc import Iterator
from typing import NamedTuple

from jobs.lines import MAX_LINE_BYTES, Lines

MAX_ROW_LINES = 100
"""A quoted field may hold line breaks; one that isn't closed by then was never meant to be one."""


class Row(NamedTuple):
    """A row as it stands in the file. A frozen dataclass would take three times as long to make."""

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


def rows_from(lines: Lines, line: int, width: int) -> Iterator[Row]:
    """The rows from here on, the first at `line`, without empty lines. The lines stand behind the row yielded."""
    while True:
        offset = lines.offset
        first = lines.take()
        if not first:
            return
        fields, fault, taken = _plain(first), "", [first]
        if fields is None:
            fields, fault = _quoted(taken, lines)
        if fields and len(fields) != width:
            fault = f"has {len(fields)} fields where {width} are expected"
        if fields or fault:
            read = () if fault else tuple([field.strip() for field in fields])
            yield Row(line, offset, first if len(taken) == 1 else b"".join(taken), read, fault)
        line += len(taken)


def _plain(line: bytes) -> list[str] | None:
    """The fields of a line without quotes, by far the most. None: it needs a closer look."""
    if len(line) == MAX_LINE_BYTES or b'"' in line or b"\0" in line:
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return None
    text = text.removesuffix("\n").removesuffix("\r")
    if "\r" in text:
        return None
    return text.split(",") if text else []


def _quoted(taken: list[bytes], lines: Lines) -> tuple[list[str], str]:
    """The fields of a row that may have several lines, which are added to its first in `taken`; or its fault."""
    lines.skip_rest(taken[0])
    try:
        return next(csv.reader(_texts(taken, lines), strict=True)), ""
    except UnicodeDecodeError:
        fault = "is not UTF-8"
    except RowUnreadableError as error:
        fault = str(error)
    except csv.Error:  # its own texts are for programmers
        fault = "has misplaced quotes or line breaks"
    # A quote that is never closed must not swallow the rows behind it: the first line alone is bad.
    lines.put_back(taken[1:])
    del taken[1:]
    return [], fault


def _texts(taken: list[bytes], lines: Lines) -> Iterator[str]:
    """The lines of one row, as many as the CSV reader asks for."""
    while True:
        raw = taken[-1]
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raise RowUnreadableError(f"has a line of {MAX_LINE_BYTES:,} bytes or more")
        if b"\0" in raw:
            raise RowUnreadableError("holds a NUL character")
        yield raw.decode()
        if len(taken) == MAX_ROW_LINES or not (raw := lines.take()):
            raise RowUnreadableError("has a quoted field that is never closed")
        taken.append(raw)
