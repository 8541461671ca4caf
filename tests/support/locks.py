"""A lock in PostgreSQL for which handlers wait, wherever they run."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


@asynccontextmanager
async def locked(engine: AsyncEngine, lock: int) -> AsyncGenerator[None]:
    """Hold the advisory lock `lock` until the block ends."""
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
        yield
