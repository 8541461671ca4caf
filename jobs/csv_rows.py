"""The rows of a CSV file, with their lines and bytes.

A row that can't be read costs itself alone: its fault is told, and reading goes on at the next line.
"""

import csv
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jobs.lines import MAX_LINE_BYTES, Lines

MAX_ROW_LINES = 100
"""A quoted field may hold line breaks; one that isn't closed by then was never meant to be one."""
NOTHING = [""]
"""The fields of an empty line."""


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
    """The rows from here on, the first at `line`, without empty lines. The lines are read in blocks, ahead of the rows.

    Where no line of a block needs a closer look, by far the most, they are all split at once: a third of the work.
    """
    while True:
        offset = lines.offset
        block = lines.take_block()
        if not block:
            return
        split = _plain(block)
        if split is None:
            lines.put_back(block)
            end = offset + sum(map(len, block))
            while lines.offset < end:
                row, taken = row_at(lines, line, width)
                if row is not None:
                    yield row
                line += taken
            continue
        for raw, fields in zip(block, split, strict=False):  # split has one more, behind the last line break
            if len(fields) == width and fields != NOTHING:
                yield Row(line, offset, raw, tuple(map(str.strip, fields)))
            elif fields != NOTHING:
                yield _row(line, offset, raw, fields, width)
            line += 1
            offset += len(raw)


def _row(line: int, offset: int, raw: bytes, fields: list[str], width: int) -> Row:
    if len(fields) == width:
        return Row(line, offset, raw, tuple(map(str.strip, fields)))
    return Row(line, offset, raw, (), f"has {len(fields)} fields where {width} are expected")


def _plain(block: Sequence[bytes]) -> list[list[str]] | None:
    """The fields of each line, where none has a quote. None: one at least needs a closer look."""
    joined = b"".join(block)
    if b'"' in joined or b"\0" in joined or len(max(block, key=len)) == MAX_LINE_BYTES:
        return None
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n")
    return None if "\r" in text else [line.split(",") for line in text.split("\n")]


def row_at(lines: Lines, line: int, width: int) -> tuple[Row | None, int]:
    """The next row, None for an empty line, and how many lines it has. The lines stand behind it."""
    offset, taken = lines.offset, [lines.take()]
    if plain := _plain(taken):
        return (None if plain[0] == NOTHING else _row(line, offset, taken[0], plain[0], width)), 1
    fields, fault = _quoted(taken, lines)
    if fault:
        return Row(line, offset, b"".join(taken), (), fault), len(taken)
    return (_row(line, offset, b"".join(taken), fields, width) if fields else None), len(taken)


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
