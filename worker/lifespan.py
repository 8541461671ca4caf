"""What an app opens in each process that runs its jobs, before the first, and closes after the last."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from typing import Any, TypeAlias

from worker.reporting.observer import Observer

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""As FastAPI's and Starlette's, but for the application, which those take."""
CLOSE_S = 5.0
"""For it to close. Its jobs have ended, and whoever waits for the process to be gone has no use for more."""


def check_lifespan(lifespan: object) -> None:
    """Raises ValueError for what would end each worker at its start: it is called there first."""
    if isasyncgenfunction(lifespan) or iscoroutinefunction(lifespan) or not callable(lifespan):
        raise ValueError(
            f"The app has lifespan={lifespan!r}; give a function that returns an async context manager, such as "
            "one with contextlib.asynccontextmanager above it."
        )
    try:
        _bind_nothing(lifespan)
    except TypeError as error:
        if isinstance(lifespan, AbstractAsyncContextManager):  # contextlib's can be called too, as decorators
            raise ValueError(  # noqa: TRY004 - as the other
                f"The app has lifespan={lifespan!r}, which has been called already; give the function itself, since "
                "each process calls it."
            ) from None
        raise ValueError(
            f"The app has lifespan={lifespan!r}, which can't be called with nothing: {error}; let it take nothing, and "
            "give what it needs with functools.partial."
        ) from None


def _bind_nothing(lifespan: Callable[..., Any]) -> None:
    """Raises TypeError where `lifespan` needs arguments."""
    # One of asynccontextmanager's takes what its function does; another decorator may give what its function needs.
    is_contextlibs = isasyncgenfunction(getattr(lifespan, "__wrapped__", None))
    try:
        found = signature(lifespan, follow_wrapped=is_contextlibs)
    except (TypeError, ValueError):  # it has none, as much of what is written in C
        return
    found.bind()


@asynccontextmanager
async def opened(lifespan: Lifespan, observer: Observer) -> AsyncGenerator[None]:
    """Raises what it raises when it opens.

    What it raises when it closes, or that it doesn't close, is told: the jobs are done.
    """
    held = lifespan()
    await held.__aenter__()
    try:
        yield
    finally:
        try:
            async with asyncio.timeout(CLOSE_S):
                await held.__aexit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - as above
            observer.fault("lifespan", error)
