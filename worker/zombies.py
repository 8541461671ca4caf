"""The end of a zombie: a worker that was stopped or cut off in mid-transaction and still holds a run's lock."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.database import APPLICATION
from worker.driver import LOCK_TIMEOUT_MS, Driver
from worker.shield import is_cancelled, to_its_end

LOOK_EVERY_S = 0.1

# Only workers' transactions that are older than our first wait: never a person's psql, and never a transaction that
# the same backend began since. Who blocks whom is read and acted on in one statement.
_END = text("""
select pg_terminate_backend(activity.pid)
from (
    select distinct unnest(pg_blocking_pids(waiting)) from unnest(cast(:waiting as int[])) as waiting
) as blocking (pid)
    join pg_stat_activity as activity using (pid)
where starts_with(activity.application_name, :application)
    and activity.xact_start < clock_timestamp() - make_interval(secs => :waited)
""")


class Zombies:
    """Ends them, over one helper connection for all the jobs of this process that wait."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: set[int] = set()
        self._ending: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("worker.zombies")

    @asynccontextmanager
    async def ended_for(self, driver: Driver) -> AsyncGenerator[None]:
        """Within it, what blocks the transaction that `driver` has begun is ended as soon as it is seen to block."""
        # The server's own word: the pid that the connection was given at its start may be a pooler's invention.
        waiting: int = await driver.fetchval("select pg_backend_pid()")
        self._waiting.add(waiting)
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._end_blockers(), name="zombies")
        try:
            yield
        finally:
            self._waiting.discard(waiting)
            if not self._waiting:
                await self._stop()

    async def _stop(self) -> None:
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.cancel()
            await asyncio.wait((ending,))

    async def _end_blockers(self) -> None:
        try:
            async with self._engine.connect() as connection:
                while not is_cancelled():
                    # The one that waited goes on before we have our answer, and then ends this task.
                    ended = await to_its_end(self._end(connection))
                    if ended:
                        self._log.warning("zombie_ended", backends=ended)
                    elif not is_cancelled():
                        await asyncio.sleep(LOOK_EVERY_S)
        except Exception as error:  # noqa: BLE001 - the jobs are put back and offered again; say why nothing moves
            self._log.warning("zombie_not_ended", error=type(error).__name__)

    async def _end(self, connection: AsyncConnection) -> int:
        """How many were ended. Each look is a transaction of its own, in which pg_stat_activity doesn't change."""
        limits = {"application": APPLICATION, "waited": LOCK_TIMEOUT_MS / 1000}
        ended = await connection.execute(_END, {"waiting": list(self._waiting), **limits})
        await connection.commit()
        return ended.rowcount
