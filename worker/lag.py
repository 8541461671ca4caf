"""The event loop's lag: a job that blocks the loop holds up all the others, and is named.

A thread watches, since the loop can't tell while it stands still. It names the job and the line that it is at.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import structlog

LOOK_EVERY_S = 0.2
BLOCKED_S = 1.0
"""After so long without a turn the loop counts as blocked."""


class _Watch:
    """Of one loop, which makes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._last_turn = time.monotonic()
        self._is_told = False
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._turn)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ratchet-lag", daemon=True)
        self._thread.start()
        self._log = structlog.get_logger("worker.lag")

    def close(self) -> None:
        self._timer.cancel()
        self._stop.set()
        self._thread.join()

    def _turn(self) -> None:
        """In the loop: it goes on."""
        lag = time.monotonic() - self._last_turn - LOOK_EVERY_S
        self._last_turn = time.monotonic()
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._turn)
        if self._is_told or lag > BLOCKED_S:  # the latter alone where the block kept all threads from running
            self._log.warning("event_loop_free", blocked_s=round(lag, 1))
        self._is_told = False

    def _look(self) -> None:
        """In the thread."""
        while not self._stop.wait(LOOK_EVERY_S):
            if not self._is_told and time.monotonic() - self._last_turn > BLOCKED_S:
                self._is_told = True
                task = asyncio.current_task(self._loop)
                self._log.warning(
                    "event_loop_blocked",
                    job=task.get_name() if task else None,
                    at=self._line(),
                    hint="no other job goes on meanwhile; await, or use worker.shield.in_thread",
                )

    def _line(self) -> str:
        """Where the loop's thread is: a handler's line or one that it calls."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # its name
        if frame is None:
            return "unknown"
        code = frame.f_code
        return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"


@contextmanager
def lag_watched() -> Generator[None]:
    """Within it, a block of the running loop is logged. A job's task has its name, which the executor gives it."""
    watch = _Watch()
    try:
        yield
    finally:
        watch.close()
