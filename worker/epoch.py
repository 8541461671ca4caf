"""Tells a wiped or exchanged Redis from the one that the outbox was sent to, and raises the epoch then.

A marker key in Redis and Redis's own run id are remembered in PostgreSQL. A wipe takes the marker away; a restart
or a failover, which may have lost the last writes, changes the run id.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import structlog
from redis.asyncio import Redis
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.brief import brief_connection, brief_transaction

MARKER_KEY = "ratchet:relay:"

# By PostgreSQL's clock: the workers' own may differ by more than the age that matters.
_READ = """
select installation, epoch, marker, redis_run_id, clock_timestamp() - raised_at as age from worker.relay_state
"""
_RAISE = text("""
update worker.relay_state set epoch = epoch + 1, marker = :marker, redis_run_id = :run_id,
    raised_at = case when marker is not null then clock_timestamp() end
""")

_OF_ONE = "it was wiped, restarted or exchanged; what isn't in it is sent again"
# Workers of two of them raise the epoch in turn, so what the other was sent is never sent again.
_OF_TWO = f"{_OF_ONE}; if this is said again and again, workers of this database differ in REDIS_URL: give all the same"


@dataclass(frozen=True, slots=True)
class Epoch:
    """Which Redis it is. Rows that were sent in an earlier epoch are sent again."""

    number: int
    age: timedelta | None
    """Since the last wipe; None: there was none."""

    def has_settled(self, after: timedelta) -> bool:
        """Whether living workers have had `after` to restore the in-progress keys of what they run.

        A wipe that is still to come was noted by a clock that has been set back since.
        """
        return self.age is None or not timedelta(0) <= self.age < after


async def current_epoch(engine: AsyncEngine, redis: Redis) -> Epoch:
    """Look at both sides; raise the epoch where they differ. Many may look at once: the row's lock lets one do it."""
    async with brief_connection(engine) as connection:
        state = await _read(connection)
    if (state.marker, state.redis_run_id) == await _seen(redis, state.installation):
        return Epoch(state.epoch, state.age)
    async with brief_transaction(engine) as connection:
        state = await _read(connection, " for update")
        marker, run_id = await _seen(redis, state.installation)
        if (state.marker, state.redis_run_id) != (marker, run_id):
            fresh = uuid4().hex
            # First Redis, then PostgreSQL: a crash in between leaves them different, and the next look raises again.
            await redis.set(MARKER_KEY + state.installation, fresh)
            if state.marker is not None:
                is_marked = marker not in {None, state.marker}
                structlog.get_logger("worker.relay").warning("redis_changed", hint=_OF_TWO if is_marked else _OF_ONE)
            await connection.execute(_RAISE, {"marker": fresh, "run_id": run_id})
            state = await _read(connection)
        return Epoch(state.epoch, state.age)


async def _read(connection: AsyncConnection, lock: str = "") -> Row[Any]:
    return (await connection.execute(text(_READ + lock))).one()


async def _seen(redis: Redis, installation: str) -> tuple[str | None, str]:
    async with redis.pipeline(transaction=False) as pipe:
        pipe.mget([MARKER_KEY + installation])  # to GET a key of another type would be an error
        pipe.info("server")
        [marker], server = await pipe.execute()
    found: dict[str, Any] = server
    # What isn't ours is no marker, and is replaced by one.
    return (marker.decode("utf-8", "backslashreplace") if marker else None), str(found.get("run_id", ""))
