"""arq's abort under the stock `arq` command, whose own knows nothing of the ledger.

It would take the message of a job that waits, and PostgreSQL would send that again; and what it cancels looks like a
stop. Where it is told to leave aborts alone, arq's client still makes the job due at once: it would run.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.delivery import NoHold
from worker.wire import ABORT_SET

LOOK_EVERY_S = 0.5
"""As often as stock arq."""


class StockAborts:
    """The jobs that run in this process, each of which may be aborted."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._holds: dict[str, StockHold] = {}

    @contextmanager
    def told_of(self, job_id: str, *, is_aborted: bool) -> Generator["StockHold"]:
        """What the job that the calling task runs knows of its abort; it is cancelled for one that comes meanwhile."""
        hold = self._holds[job_id] = StockHold(is_aborted=is_aborted)
        try:
            yield hold
        finally:
            if self._holds.get(job_id) is hold:  # arq's lease may have run out, and have brought it a second time
                del self._holds[job_id]

    async def watch(self) -> None:
        """Look for aborts of jobs that run here. The word is arq's to take away, once the job has ended."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with suppress(RedisError, OSError):  # arq's worker says so
                await self._look()

    async def _look(self) -> None:
        holds = {job_id: hold for job_id, hold in self._holds.items() if not hold.is_aborted()}
        if holds:
            asked: list[float | None] = await self._redis.zmscore(ABORT_SET, list(holds))
            for hold, at in zip(holds.values(), asked, strict=True):
                if at is not None:
                    hold.abort()


class StockHold(NoHold):
    """No lease, but a task that can be cancelled."""

    def __init__(self, *, is_aborted: bool) -> None:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._is_aborted = is_aborted

    def is_aborted(self) -> bool:
        return self._is_aborted

    def abort(self) -> None:
        """Cancel the job. One that has ended meanwhile is left alone."""
        self._is_aborted = True
        if self._task is not None:
            self._task.cancel()
