"""The next rows of an import, read and checked in a thread while PostgreSQL works on those before them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Generic, TypeVar

from jobs.csv_input import Position, Reader
from jobs.csv_rows import Row

T = TypeVar("T")
V = TypeVar("V")
Check = Callable[[Sequence[Row]], T]
"""What the rows of a chunk hold, and what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Checked(Generic[T]):
    """A chunk of a file. Its rows themselves are gone, but for those that `checked` holds."""

    asked: int
    """How many it was to have."""
    read: int
    """How many there were."""
    next: Position | None
    """Where the next chunk begins. None: the file is read."""
    in_all: int
    """Rows that the file has, as far as what was read of it tells."""
    checked: T
    """What `check` says of them."""
    read_on: Callable[[], None]
    """Begins to read the next chunk. Best called when PostgreSQL has much to do, and Python nothing."""
    opening: timedelta = timedelta(0)
    """Of the first chunk: what it took to open the file, and to find the place in it."""

    def then_read_on(self, given: Iterable[V]) -> Iterator[V]:
        """`given`; when all of it is taken the next chunk begins to be read."""
        yield from given
        self.read_on()


class ReadAhead(Generic[T]):
    """An open file, and its next chunk, which is being read. One chunk ahead, no more: two are in memory."""

    def __init__(self, reader: Reader, check: Check[T], opening: timedelta = timedelta(0)) -> None:
        self._reader = reader
        self._check = check
        self._opening = opening
        self._size = 0
        """The newest that was asked for."""
        self._next: asyncio.Future[Checked[T]] | None = None
        self.position = reader.position
        """Where the next chunk begins."""

    async def next(self, size: int) -> Checked[T]:
        """The next chunk. Of one that was read ahead the size is that of the call before. Raises as Reader does."""
        self._size = size
        self._next = self._next or self._read()
        chunk = await asyncio.shield(self._next)  # whoever is cancelled: no thread ends for that
        self._next, self.position = None, chunk.next
        opening, self._opening = self._opening, timedelta(0)
        return replace(chunk, opening=opening)

    def _read_on(self) -> None:
        if self._next is None and self.position:
            self._next = self._read()

    def close(self) -> None:
        """The file is closed when the thread is done with it."""
        if self._next is None:
            self._reader.close()
        else:
            self._next.add_done_callback(self._end)

    def _end(self, read: asyncio.Future[Checked[T]]) -> None:
        if not read.cancelled():
            read.exception()  # nobody asks for it any more
        self._reader.close()

    def _read(self) -> asyncio.Future[Checked[T]]:
        return asyncio.get_running_loop().run_in_executor(None, self._read_and_check, self._size)

    def _read_and_check(self, size: int) -> Checked[T]:
        """To let go of ten thousand rows takes 3 ms, which no chunk waits for here."""
        rows = self._reader.read(size)
        return Checked(size, len(rows.rows), rows.next, rows.in_all, self._check(rows.rows), self._read_on)
