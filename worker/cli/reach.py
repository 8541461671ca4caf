"""Reaching the servers: for a while, or for ever. A server that says no is believed at once."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from arq.connections import ArqRedis
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, NoPermissionError, TimeoutError  # noqa: A004
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.broker import connect_broker, is_untrusted
from worker.database import DatabaseAway, create_engine, read_committed
from worker.faults import is_lost_connection
from worker.settings import Settings

PATIENCE = timedelta(seconds=10)
"""How long a command tries that isn't a worker."""
AGAIN_FROM_S, AGAIN_UP_TO_S = 0.1, 2.0
APPLICATION = "ratchet command"


def command_engine(settings: Settings, pool_size: int) -> AsyncEngine:
    """The engine of a command, which isn't connected yet."""
    url = settings.database_url.get_secret_value()
    engine = create_engine(url, pool_size=pool_size, application=APPLICATION, pgbouncer=settings.pgbouncer)
    return read_committed(engine)


async def reach_database(engine: AsyncEngine, patience: timedelta | None = PATIENCE) -> None:
    """Return when PostgreSQL answers. None: wait for ever, and say so once.

    Raises DatabaseAway after `patience`, or where it refuses us.
    """

    async def probe() -> None:
        async with engine.connect():
            pass

    await _reach("PostgreSQL", probe, _database_is_away, patience)


async def reach_redis(redis: ArqRedis, patience: timedelta | None = PATIENCE) -> None:
    """Return when Redis answers. None: wait for ever, and say so once.

    Raises redis's errors after `patience`, or where it refuses us.
    """

    async def probe() -> None:
        await redis.ping()

    await _reach("Redis", probe, _redis_is_away, patience)


@asynccontextmanager
async def database(settings: Settings) -> AsyncGenerator[AsyncEngine]:
    """PostgreSQL, reached; for the one command that a process runs."""
    engine = command_engine(settings, pool_size=2)
    try:
        await reach_database(engine)
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def broker(settings: Settings) -> AsyncGenerator[ArqRedis]:
    """Redis, reached; for the one command that a process runs."""
    redis = connect_broker(settings.redis_url.get_secret_value())
    try:
        await reach_redis(redis)
        yield redis
    finally:
        await redis.aclose()


async def _reach(
    server: str, probe: Callable[[], Awaitable[None]], is_away: Callable[[Exception], bool], patience: timedelta | None
) -> None:
    deadline = None if patience is None else time.monotonic() + patience.total_seconds()
    log, said, delay = structlog.get_logger("worker.start"), False, AGAIN_FROM_S
    while True:
        try:
            await probe()  # one try ends by the connection's own timeouts, 10 s at most
        except Exception as error:
            if not is_away(error) or (deadline is not None and time.monotonic() + delay > deadline):
                raise
            if not said and deadline is None:
                reason = str(error) if isinstance(error, DatabaseAway) else type(error).__name__
                log.warning("waiting_for_server", server=server, reason=reason)
                said = True
        else:
            if said:
                log.warning("server_is_there", server=server)
            return
        await asyncio.sleep(delay)
        delay = min(AGAIN_UP_TO_S, delay * 2)


def _database_is_away(error: Exception) -> bool:
    return is_lost_connection(error) and not (isinstance(error, DatabaseAway) and error.refused)


def _redis_is_away(error: Exception) -> bool:
    refused = isinstance(error, AuthenticationError | NoPermissionError) or is_untrusted(error)
    return isinstance(error, ConnectionError | TimeoutError | BusyLoadingError | OSError) and not refused
