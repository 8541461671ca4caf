"""arq's aborts of jobs that run here. arq reads the whole set, which anybody may fill; this asks for its own."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from worker.wire import ABORT_SET


class Aborts:
    """Of one worker's jobs. The word stays until Redis is told of the job's end: who takes over needs it, too."""

    def __init__(self, running: Mapping[str, asyncio.Task[Any]], aborting: set[str], every_s: float) -> None:
        """`running` and `aborting` are the worker's: its jobs' tasks, and the ids of those that were aborted."""
        self._running = running
        self._aborting = aborting
        self._every_s = every_s
        self._next_look = 0.0

    def were_none(self, asked: float) -> None:
        """There were none for anybody at `asked` (time.monotonic()): a look is over."""
        self._next_look = asked + self._every_s

    async def look(self, redis: Redis) -> None:
        """Cancel what was aborted, if it is time to look. Raises redis's errors."""
        job_ids = [job_id for job_id in self._running if job_id not in self._aborting]
        if not job_ids or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._every_s
        asked: list[float | None] = await redis.zmscore(ABORT_SET, job_ids)
        for job_id, at in zip(job_ids, asked, strict=True):
            if at is not None and job_id in self._running:
                self._aborting.add(job_id)
                self._running[job_id].cancel()
