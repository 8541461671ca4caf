"""Where a row ends whose quotes go on for longer than they may: what is inside of quotes is no row of its own."""

import re

from jobs.lines import Lines

MAX_SPAN_BYTES = 8 * 1024 * 1024
"""A closing quote is looked for so far; a hundred of the longest lines have 6.4 MB."""
MAX_SPAN_LINES = 10_000
FIELD = re.compile(rb'(?:"[^"]*+(?:""[^"]*+)*+("?)|[^",\r\n][^,\r\n]*+|)(,|[\r\n]*+\Z)')
"""With what ends it. A quoted one that isn't closed has all of the line, and group 1 is empty."""


class Closing:
    """Looks for the ends of rows. However many rows have none, no line is gone through again and again."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._in_vain = 0
        """In bytes. What is open here has no end, so no row that begins before has one."""

    def found(self, taken: list[bytes]) -> bool:
        """Whether the row that begins with the first of `taken` has an end; then `taken` is all of it, else the first.

        The lines stand behind what is taken.
        """
        begin = self._lines.offset - sum(map(len, taken))
        self._lines.put_back(taken)
        taken.clear()
        if begin >= self._in_vain and self._goes_to_end(taken, begin):
            return True
        if taken:
            self._lines.put_back(taken)
        taken[:] = [self._lines.take()]
        return False

    def _goes_to_end(self, taken: list[bytes], begin: int) -> bool:
        is_open: bool | None = False
        while line := self._line(taken, begin):
            if self._lines.offset - begin > MAX_SPAN_BYTES or len(taken) > MAX_SPAN_LINES:
                break
            if not is_open or b'"' in line:
                is_open = _leaves_open(b'"' + line if is_open else line)
            if is_open is None:
                break
            if not is_open:
                return True
        self._in_vain = self._lines.offset - len(line)
        return False

    def _line(self, taken: list[bytes], begin: int) -> bytes:
        """The next line, however many pieces it is read in; empty at the end."""
        pieces: list[bytes] = []
        while self._lines.offset - begin <= MAX_SPAN_BYTES and (piece := self._lines.take()):
            pieces.append(piece)
            if piece.endswith(b"\n"):
                break
        taken += pieces
        return b"".join(pieces)


def _leaves_open(line: bytes) -> bool | None:
    """Whether the last field of a line goes on in the next one. None: its quotes are misplaced."""
    at = 0
    while field := FIELD.match(line, at):
        closing, end = field.groups()
        if end != b",":
            return closing == b""
        at = field.end()
    return None
