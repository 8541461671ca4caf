"""What an app opens in each process that runs its jobs, before the first, and closes after the last."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from worker.reporting.observer import Observer

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]
"""As FastAPI's and Starlette's."""
CLOSE_S = 5.0
"""For it to close. Its jobs have ended, and whoever waits for the process to be gone has no use for more."""


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
