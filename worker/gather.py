"""A batch: jobs of one handler gather until there are enough of them, or the first has waited long enough."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

from worker.call import Work
from worker.handler import BatchHandler
from worker.member import Member

MAX_BYTES = 8 * 1024 * 1024
"""Of the messages in one batch. The first comes whatever its size."""


class Batch:
    """Carried out by a task of its own. The first of its members ends last, and has the slot of all of them."""

    def __init__(self, handler: BatchHandler[Any], first: Member) -> None:
        self.handler = handler
        self.members: list[Member] = []
        self.is_stopping = False
        self._keys: set[tuple[str, int]] = set()
        self._aborted: set[tuple[str, int]] = set()
        """Of the same: whose abort was heard."""
        self._bytes = 0
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.join(first)

    def takes(self, work: Work) -> bool:
        """Whether there is room for it. The same job, delivered twice, belongs into two batches."""
        is_open = not self._closed.is_set() and self._bytes + len(work.raw) <= MAX_BYTES
        return is_open and _key(work) not in self._keys

    def join(self, member: Member) -> None:
        """Take it in. Until the batch begins it needs no slot, but a lease."""
        hold = member.work.delivery.hold
        hold.begins(self.handler.linger)
        hold.shares_slot()
        self.members.append(member)
        self._keys.add(_key(member.work))
        self._bytes += len(member.work.raw)
        if len(self.members) >= self.handler.max_size:
            self.close()

    def close(self) -> None:
        """Nobody joins any more: it begins."""
        self._closed.set()

    async def gather(self) -> None:
        """Until it is closed, or the first has waited long enough."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.handler.linger.total_seconds()):
                await self._closed.wait()
        self.close()
        self.members[0].work.delivery.hold.takes_slot()

    def start(self, carrying_out: Coroutine[Any, Any, None], context: Context) -> None:
        """Begin the task, in which it gathers and is carried out."""
        self._task = asyncio.create_task(carrying_out, name=self.handler.job.job_name, context=context)

    async def end(self, heed: Callable[[], None]) -> None:
        """Wait for the end of all. `heed` is called for each cancellation meanwhile."""
        while self._task is not None and not self._task.done():
            try:
                await asyncio.wait((self._task,))
            except asyncio.CancelledError:
                heed()

    def heed(self, work: Work) -> None:
        """A delivery of one of its jobs was cancelled: the worker stops, and all of it is rolled back.

        arq's abort concerns that job alone. It is heeded if the job comes to stand alone; else it came too late. A job
        is cancelled for it once, so what comes after that is the worker's stop.
        """
        is_abort = work.delivery.hold.is_aborted() and _key(work) not in self._aborted
        if is_abort:
            self._aborted.add(_key(work))
        elif self._task is not None:
            self.is_stopping = True
            self._task.cancel()


def _key(work: Work) -> tuple[str, int]:
    return work.run.job_id, work.run.enqueued_ms
