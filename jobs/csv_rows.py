"""The rows of a CSV file, with their lines and bytes.

A row that can't be read costs itself alone: its fault is told, and reading goes on behind it.
"""

import csv
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from jobs.csv_closing import Closing
from jobs.lines import MAX_LINE_BYTES, Lines

MAX_ROW_LINES = 100
"""A quoted field may hold line breaks."""
NOTHING = [""]
"""The fields of an empty line."""
LONG_LINE = f"has a line of {MAX_LINE_BYTES:,} bytes or more"
LONG_FIELD = f"has a field of more than {csv.field_size_limit():,} characters"
MANY_LINES = f"has more than {MAX_ROW_LINES} lines"
UNCLOSED = "has a quoted field that is never closed"


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

    @property
    def is_place(self) -> bool:
        """Whether this is no row, but a place behind empty lines, of which there may be without end."""
        return not self.fields and not self.fault


class RowUnreadableError(ValueError):
    """The lines can't be a row; the text is the fault."""


def rows_from(lines: Lines, line: int, width: int) -> Iterator[Row]:
    """The rows from here on, the first at `line`, without empty lines. The lines are read in blocks, ahead of the rows.

    Where no line of a block needs a closer look, by far the most, they are all split at once: a third of the work.
    Behind a block that ends with an empty line comes the place there, so that whoever reads may stop.
    """
    closing = Closing(lines)
    while True:
        offset = lines.offset
        block = lines.take_block()
        if not block:
            return
        split = _plain(block)
        if split is None:
            lines.put_back(block)
            line = yield from _one_by_one(lines, line, width, closing, offset + sum(map(len, block)))
            continue
        for raw, fields in zip(block, split, strict=False):  # split has one more, behind the last line break
            if len(fields) == width and fields != NOTHING:
                yield Row(line, offset, raw, tuple(map(str.strip, fields)))
            elif fields != NOTHING:
                yield _row(line, offset, raw, fields, width)
            line += 1
            offset += len(raw)
        if split[len(block) - 1] == NOTHING:
            yield Row(line, offset, b"", ())


def _one_by_one(lines: Lines, line: int, width: int, closing: Closing, end: int) -> Generator[Row, None, int]:
    """As `rows_from`, of lines that need a closer look, up to `end`. Returns the number of the line behind them."""
    row = None
    while lines.offset < end:
        row, taken = row_at(lines, line, width, closing)
        if row is not None:
            yield row
        line += taken
    if row is None:
        yield Row(line, lines.offset, b"", ())
    return line


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


def row_at(lines: Lines, line: int, width: int, closing: Closing) -> tuple[Row | None, int]:
    """The next row, None for an empty line, and how many lines it has. The lines stand behind it."""
    offset, taken = lines.offset, [lines.take()]
    if plain := _plain(taken):
        return (None if plain[0] == NOTHING else _row(line, offset, taken[0], plain[0], width)), 1
    fields, fault = _quoted(taken, lines, closing)
    raw = b"".join(taken)
    count = raw.count(b"\n") + (not raw.endswith(b"\n"))
    if fault:
        return Row(line, offset, raw if count > 1 else raw[:MAX_LINE_BYTES], (), fault), count
    return (_row(line, offset, raw, fields, width) if fields else None), count


def _quoted(taken: list[bytes], lines: Lines, closing: Closing) -> tuple[list[str], str]:
    """The fields of a row that may have several lines, which are added to its first in `taken`; or its fault."""
    try:
        return next(csv.reader(_texts(taken, lines), strict=True)), ""
    except UnicodeDecodeError:
        fault = "is not UTF-8"
    except RowUnreadableError as error:
        fault = str(error)
    except csv.Error as error:  # its own texts are for programmers
        fault = LONG_FIELD if "field limit" in str(error) else "has misplaced quotes or line breaks"
    if closing.found(taken):
        return [], fault
    # A quote that is never closed must not swallow the rows behind it: the first line alone is bad.
    lines.skip_rest(taken[0])
    return [], UNCLOSED if fault in {MANY_LINES, LONG_FIELD} else fault


def _texts(taken: list[bytes], lines: Lines) -> Iterator[str]:
    """The lines of one row, as many as the CSV reader asks for."""
    while True:
        raw = taken[-1]
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            raise RowUnreadableError(LONG_LINE)
        if b"\0" in raw:
            raise RowUnreadableError("holds a NUL character")
        yield raw.decode()
        if len(taken) == MAX_ROW_LINES:
            raise RowUnreadableError(MANY_LINES)
        if not (raw := lines.take()):
            raise RowUnreadableError(UNCLOSED)
        taken.append(raw)
