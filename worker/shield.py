"""Cancellation, and what must be done in spite of it."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await `coroutine` to its end even if the caller is cancelled meanwhile; `is_cancelled` then says so."""
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    return task.result()


def is_cancelled() -> bool:
    """Whether the calling task was asked to end, and hasn't answered yet."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def answer_cancellation() -> None:
    """What the calling task was cancelled for has been done; it goes on to tell of it."""
    task = asyncio.current_task()
    while task is not None and task.uncancel() > 0:
        pass
