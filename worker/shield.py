"""Cancellation, and what must be done in spite of it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await `coroutine` to its end even if the caller is cancelled meanwhile.

    The cancellation is then spent: what was under way has happened, and is reported as what it is.
    """
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            spend_cancellation(error)
        except BaseException:  # noqa: BLE001, S110 - raised below, from the task itself
            pass
    return task.result()


def spend_cancellation(error: BaseException) -> None:
    """A cancellation that was caught is answered by an outcome; the task goes on to settle it."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None:
        task.uncancel()
