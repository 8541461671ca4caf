"""The end of a zombie: a worker that was stopped or cut off in mid-transaction and still holds a run's lock."""

import asyncio

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.database import APPLICATION, LOCK_TIMEOUT_MS

LOOK_EVERY_S = 0.1

# Only workers' transactions that are older than our first wait: never a person's psql, and never a transaction that
# the same backend began since. Who blocks whom is read and acted on in one statement.
_END = text("""
select pg_terminate_backend(activity.pid)
from unnest(pg_blocking_pids(:waiting)) as blocking (pid) join pg_stat_activity as activity using (pid)
where starts_with(activity.application_name, :application)
    and activity.xact_start < clock_timestamp() - make_interval(secs => :waited)
""")


async def end_blockers(engine: AsyncEngine, waiting: int) -> None:
    """End what blocks the backend `waiting` (its pid), as soon as it is seen to block. Runs until cancelled."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        while True:
            parameters = {"waiting": waiting, "application": APPLICATION, "waited": LOCK_TIMEOUT_MS / 1000}
            await connection.execute(_END, parameters)
            await asyncio.sleep(LOOK_EVERY_S)
