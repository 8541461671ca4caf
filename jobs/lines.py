"""The lines of a file, packed or not, none longer than so many bytes; some may be put back."""

import gzip
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import BinaryIO, cast

from worker.errors import Permanent

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_LINE_BYTES = 64 * 1024
BLOCK = 1024 * 1024
LINES_AHEAD = 200
"""Read at once: a line alone costs three calls. Of the longest lines these are 13 MB."""
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)


class Lines:
    """The lines from a place on. Line breaks are LF; one before it, CR, stays."""

    def __init__(self, file: BinaryIO, name: str, max_unpacked: int) -> None:
        """A file whose name ends with .gz or .zst is unpacked, up to `max_unpacked` bytes."""
        self._name = name
        self._packed = name.endswith((".gz", ".zst"))
        self._file = _unpacked(file, name)
        self._max = max_unpacked
        self._ahead: list[bytes] = []
        """The next lines, the first one last."""
        self.offset = 0
        """Bytes before the next line; unpacked ones."""

    def take(self) -> bytes:
        """The next line with its break, or the first MAX_LINE_BYTES of it; empty at the end.

        Raises Permanent where the file can't be unpacked, or holds more than it may.
        """
        line = self._ahead.pop() if self.has_more() else b""
        self.offset += len(line)
        return line

    def has_more(self) -> bool:
        """Whether there is another line. Raises as `take` does."""
        if not self._ahead:
            self._read()
        return bool(self._ahead)

    def take_block(self) -> list[bytes]:
        """Some of the next lines at once, each as `take` gives it; none at the end. Raises as `take` does."""
        block = self._ahead[::-1] if self.has_more() else []
        self._ahead = []
        self.offset += sum(map(len, block))
        return block

    def put_back(self, lines: Sequence[bytes]) -> None:
        """These are the next ones again."""
        self._ahead += reversed(lines)
        self.offset -= sum(map(len, lines))

    def skip_rest(self, line: bytes) -> None:
        """Go to the end of a line of which `line` is the beginning."""
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = self.take()

    def seek(self, offset: int) -> None:
        """Go to `offset`. What is packed is read again from its start."""
        self._ahead.clear()
        if not self._packed:
            self._file.seek(offset)
        else:
            left = offset - self.offset
            while left > 0 and (block := self._unpack(min(left, BLOCK))):
                left -= len(block)
        self.offset = offset

    def _read(self) -> None:
        """Read on; the file is past what is ahead."""
        try:
            lines = list(islice(iter(partial(self._file.readline, MAX_LINE_BYTES), b""), LINES_AHEAD))
        except BROKEN as error:
            raise self._broken(error) from None
        self._ahead = lines[::-1]
        if self._packed and self.offset + sum(map(len, lines)) > self._max:
            raise Permanent(
                f"The file {self._name!r} unpacks to more than {self._max:,} bytes; "
                "raise WORKER_FILES_MAX_UNPACKED_MB, or split it."
            )

    def _unpack(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except BROKEN as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> Permanent:
        return Permanent(
            f"The file {self._name!r} can't be unpacked behind byte {self.offset:,} ({error}); "
            "put a whole one in its place, and import it by a job of its own."
        )


def _unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """Both tell a file that was cut off from one that is whole, and unpack no more than is asked for."""
    if name.endswith(".gz"):
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if name.endswith(".zst"):
        return cast("BinaryIO", zstd.ZstdFile(file))
    return file
