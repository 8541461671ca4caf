"""Tells a wiped or exchanged Redis from the one that the outbox was sent to, and raises the epoch then.

A marker key in Redis and Redis's own run id are remembered in PostgreSQL. A wipe takes the marker away; a restart
or a failover, which may have lost the last writes, changes the run id.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

MARKER_KEY = "ratchet:relay:"

_READ = "select installation, epoch, marker, redis_run_id, raised_at from worker.relay_state"
_RAISE = text("""
update worker.relay_state set epoch = epoch + 1, marker = :marker, redis_run_id = :run_id,
    raised_at = case when marker is not null then clock_timestamp() end
""")


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which Redis it is. Rows that were sent in an earlier epoch are sent again."""

    number: int
    raised_at: datetime | None


async def current_epoch(engine: AsyncEngine, redis: Redis) -> Epoch:
    """Look at both sides; raise the epoch where they differ. Many may look at once: the row's lock lets one raise it."""
    async with engine.connect() as connection:
        state = (await connection.execute(text(_READ))).one()
    if (state.marker, state.redis_run_id) == await _seen(redis, state.installation):
        return Epoch(state.epoch, state.raised_at)
    async with engine.begin() as connection:
        state = (await connection.execute(text(_READ + " for update"))).one()
        marker, run_id = await _seen(redis, state.installation)
        if (state.marker, state.redis_run_id) != (marker, run_id):
            if state.marker is not None:
                structlog.get_logger("worker.relay").warning(
                    "redis_changed", hint="it was wiped, restarted or exchanged; what isn't in it is sent again"
                )
            fresh = uuid4().hex
            # First Redis, then PostgreSQL: a crash between the two leaves them different, and the next look raises again.
            await redis.set(MARKER_KEY + state.installation, fresh)
            await connection.execute(_RAISE, {"marker": fresh, "run_id": run_id})
            state = (await connection.execute(text(_READ))).one()
        return Epoch(state.epoch, state.raised_at)


async def _seen(redis: Redis, installation: str) -> tuple[str | None, str]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.get(MARKER_KEY + installation)
        pipe.info("server")
        marker, server = await pipe.execute()
    found: dict[str, Any] = server
    return (marker.decode() if marker else None), str(found["run_id"])
