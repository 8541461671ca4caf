"""A lifespan for applications that are processes of their own."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog


@asynccontextmanager
async def telling() -> AsyncGenerator[None]:
    """Say in the log in which process it is open."""
    log = structlog.get_logger("test")
    log.warning("opened", pid=os.getpid())
    yield
    log.warning("closed", pid=os.getpid())
