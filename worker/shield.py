"""Cancellation, and what must be done in spite of it."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await `coroutine` to its end even if the caller is cancelled meanwhile; `is_cancelled` then says so."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    while not task.done():
        # asyncio.wait would do, and take 9 us where this takes 5 (in one run); every commit pays for it.
        ended = loop.create_future()
        task.add_done_callback(partial(_wake, ended))
        try:  # noqa: SIM105 - as above
            await ended
        except asyncio.CancelledError:
            pass
    return task.result()


def _wake(waiter: "asyncio.Future[None]", _ended: object) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run `function` in a thread. A cancellation is raised only when it has ended.

    So no thread goes on writing to what its caller is closing.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((task,))
        raise


def cancellations() -> int:
    """How often the calling task was asked to end, without an answer yet."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def is_cancelled() -> bool:
    """Whether the calling task was asked to end, and hasn't answered yet."""
    return cancellations() > 0


def stop_if_cancelled() -> None:
    """Raises CancelledError where the calling task was asked to end while it waited `to_its_end`."""
    if is_cancelled():
        raise asyncio.CancelledError


def answer_cancellation(task: "asyncio.Task[Any] | None" = None) -> None:
    """What the calling task was cancelled for has been done; it goes on to tell of it. Its caller may know the task."""
    task = task or asyncio.current_task()
    while task is not None and task.cancelling() and task.uncancel() > 0:
        pass


CANCEL_AGAIN_S = 1.0


async def cancel_all(tasks: Collection[asyncio.Future[Any]], patience: float | None = None) -> set[asyncio.Future[Any]]:
    """Cancel `tasks` until they have ended. Returns those that haven't after `patience` seconds.

    Once isn't enough: before Python 3.12 asyncio.wait_for, which redis-py sends its commands with, may swallow it.
    """
    pending, loop = {task for task in tasks if not task.done()}, asyncio.get_running_loop()
    deadline = None if patience is None else loop.time() + patience
    while pending and (deadline is None or loop.time() < deadline):
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    return pending
