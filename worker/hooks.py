"""What runs once Redis was told of a job's end: arq's `after_job_end`."""

import asyncio
from collections.abc import Callable

from worker.delivery import Report


class Hooks:
    """Of one worker. Each has the slot of its job until it has ended, and runs in what the job ran in."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """`ended` is called when a slot is free."""
        self._running: set[asyncio.Task[None]] = set()
        self._ended = ended

    def __len__(self) -> int:
        return len(self._running)

    def start(self, report: Report) -> None:
        """Begin what is to be called after this job, if anything is."""
        if report.afterwards is not None:
            hook = asyncio.get_running_loop().create_task(report.afterwards(), context=report.context)
            self._running.add(hook)
            hook.add_done_callback(self._has_ended)

    def cancel(self) -> None:
        """The worker stops."""
        for hook in self._running:
            hook.cancel()

    async def all_ended(self) -> None:
        """Wait for those that run."""
        await asyncio.gather(*self._running)

    def _has_ended(self, hook: asyncio.Task[None]) -> None:
        self._running.discard(hook)
        self._ended()
