"""Parts that a process can't do without (relay, schedule, …): where one fails, it ends in order, and is replaced.

Each of them outlives what servers do to it. An error that gets out of one is a defect, and a worker that went on
without it would look healthy while nothing is sent, or nothing is paused.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from worker.reporting.observer import Observer


class Vital:
    """Starts parts and watches them. `end` asks the process for an orderly stop."""

    def __init__(self, observer: Observer, end: Callable[[], object]) -> None:
        self._observer = observer
        self._end = end
        self.has_failed = False

    def start(self, name: str, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `part` beside. That it returns is no failure: a schedule may be empty."""
        return asyncio.create_task(self._watch(name, part), name=name)

    async def _watch(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        try:
            await part
        except Exception as error:  # noqa: BLE001 - whatever it is, the part is gone
            self._observer.fault(name, error)
            self.has_failed = True
            self._end()
