"""The next rows of an import, read and checked in a thread while PostgreSQL works on those before them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobs.csv_input import Reader, Rows
from jobs.csv_rows import Row

T = TypeVar("T")
Check = Callable[[Sequence[Row]], list[T]]
"""For each row what it holds, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Checked(Generic[T]):
    """A chunk of a file, and what `check` says of its rows."""

    rows: Rows
    checked: list[T]


class ReadAhead(Generic[T]):
    """An open file, and its next chunk, which is being read. One chunk ahead, no more: two are in memory."""

    def __init__(self, reader: Reader, check: Check[T]) -> None:
        self._reader = reader
        self._check = check
        self._next: asyncio.Future[Checked[T]] | None = None
        self.position = reader.position
        """Where the next chunk begins."""

    async def next(self, size: int) -> Checked[T]:
        """The next chunk. Of one that was read ahead the size is the last one's. Raises as Reader does."""
        self._next = self._next or self._read(size)
        chunk = await asyncio.shield(self._next)  # whoever is cancelled: no thread ends for that
        self.position = chunk.rows.next
        self._next = self._read(size) if self.position else None
        return chunk

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

    def _read(self, size: int) -> asyncio.Future[Checked[T]]:
        return asyncio.get_running_loop().run_in_executor(None, self._read_and_check, size)

    def _read_and_check(self, size: int) -> Checked[T]:
        rows = self._reader.read(size)
        return Checked(rows, self._check(rows.rows))
