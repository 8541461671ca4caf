"""A producer that enqueues in transactions while servers fail, and the judge of what became of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.ha.app import Mark
from tests.support.waiting import wait_until
from worker.database import DatabaseAway
from worker.outbox import enqueue

ENV = {
    "WORKER_APP": "tests.ha.app:app",
    "WORKER_LEASE": "1",
    "WORKER_SHUTDOWN_GRACE": "1",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_SWEEP_INTERVAL": "1",
    "WORKER_POLL_DELAY": "0.02",
}
PAUSE_S = 0.005
"""Between two transactions, so that a run has hundreds of them and not thousands."""


class Load:
    """One number a transaction: it is noted in `asked` and enqueued in one."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._n = 0
        self.committed: set[int] = set()
        """The numbers whose commit was answered. Of one that wasn't nobody knows, but `asked` does."""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            with suppress(DBAPIError, DatabaseAway):
                await self.one()

    async def one(self) -> None:
        self._n += 1
        n = self._n
        async with AsyncSession(self._engine) as session, session.begin():
            await session.execute(text("insert into asked values (:n)"), {"n": n})
            enqueue(session, Mark(n=n))
        self.committed.add(n)

    async def grows_by(self, count: int) -> None:
        """Wait for so many more commits."""
        goal = len(self.committed) + count

        async def has_grown() -> bool:
            return len(self.committed) >= goal

        await wait_until(has_grown, timeout=60)

    async def is_applied_once(self) -> None:
        """Wait until nothing is left to do; then each number that was asked for is there, once."""
        await wait_until(self._is_done, timeout=90)
        asked = await self._numbers("select n from asked")
        assert await self._numbers("select n from effect") == asked
        assert self.committed <= set(asked)
        assert await self._numbers("select 1 from worker.run where status <> 'completed'") == []

    async def _is_done(self) -> bool:
        with suppress(DBAPIError, DatabaseAway):
            return await self._numbers("select 1 from worker.outbox limit 1") == []
        return False

    async def _numbers(self, statement: str) -> list[int]:
        async with self._engine.connect() as connection:
            return sorted((await connection.execute(text(statement))).scalars())


@asynccontextmanager
async def load_on(engine: AsyncEngine) -> AsyncGenerator[Load]:
    """Enqueue until the block ends."""
    load = Load(engine)
    producing = asyncio.create_task(load.run())
    try:
        yield load
    finally:
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)
