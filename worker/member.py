"""A job in a batch: it waits in its own delivery's task, which may be cancelled, for what the batch's task tells it."""

import asyncio
from collections.abc import Callable

from worker.attempt import Settled
from worker.call import Work


class Member:
    """Of one batch. Told once: an outcome, or that it is to stand alone."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.is_pending = True
        self._told: Settled | Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None

    def tell(self, told: Settled | Exception | None) -> None:
        """An outcome, an exception to raise, or None: stand alone."""
        self._told, self.is_pending = told, False
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def hear(self, on_cancelled: Callable[[], None]) -> Settled | None:
        """What it is told, however often the calling task is cancelled meanwhile. None: stand alone.

        Raises the exception that it is told.
        """
        while self.is_pending:
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            except asyncio.CancelledError:
                on_cancelled()
        if isinstance(self._told, Exception):
            raise self._told
        return self._told

    async def stand_alone(self) -> None:
        """Tell it to, and wait until it has ended."""
        self._ended = asyncio.get_running_loop().create_future()
        self.tell(None)
        await self._ended

    def end(self) -> None:
        """It stood alone, and has ended."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
