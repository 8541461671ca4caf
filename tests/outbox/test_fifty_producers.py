"""The promise of `key`, with real workers: after each commit a run begins that sees it, and never two at once."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.support.waiting import wait_until
from worker.app import App
from worker.errors import Snooze
from worker.handler import Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.reporting.observer import Observers
from worker.retry import RetryPolicy
from worker.run import current_run
from worker.runtime import run_worker
from worker.settings import load_settings

PRODUCERS, CHANGES = 50, 10


class Refresh(Job, name="test.refresh"):
    """Mark every change as seen."""


class Refresher:
    """Fails and snoozes now and then, and notices a second one at the same time."""

    def __init__(self) -> None:
        self.runs = 0
        self.failures = 0
        self.snoozes = 0
        self.overlaps = 0
        self._running = 0

    async def __call__(self, _job: Refresh, session: AsyncSession) -> None:
        self._running += 1
        try:
            self.overlaps += self._running - 1
            self.runs += 1
            await session.execute(text("update change set seen = true where not seen"))
            if self.runs % 3 == 0 and current_run().attempt == 1:
                self.failures += 1
                raise ValueError("now and then")
            if self.runs % 5 == 0:
                self.snoozes += 1
                raise Snooze(timedelta(milliseconds=1))
        finally:
            self._running -= 1


@pytest.fixture
async def changes(engine: AsyncEngine) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.execute(text("create table change (producer int, number int, seen bool default false)"))
    yield
    async with engine.begin() as connection:
        await connection.execute(text("drop table change"))


async def test_fifty_producers_enqueue_under_one_key_while_it_waits_runs_and_retries(
    engine: AsyncEngine, changes: None, database_url: str, redis_url: str
) -> None:
    refresher = Refresher()
    # The snapshot is taken when the run begins: what the handler sees was committed before.
    retry = RetryPolicy(attempts=1000, base=timedelta(milliseconds=1))
    app = App([Handler(Refresh, refresher, retry=retry, isolation="REPEATABLE READ")])
    settings = load_settings(database_url=database_url, redis_url=redis_url, concurrency=4, relay_poll=0.1)
    workers = [asyncio.create_task(run_worker(app, settings, Observers())) for _ in range(2)]

    async def produce(producer: int) -> None:
        for number in range(CHANGES):
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text(f"insert into change values ({producer}, {number})"))
                enqueue(session, Refresh(), key="all")
                await session.flush()
                await asyncio.sleep(random.random() / 100)

    async def nothing_is_left() -> bool:
        async with engine.connect() as connection:
            return not (await connection.execute(text("select exists (select from worker.outbox)"))).scalar_one()

    await asyncio.gather(*(produce(producer) for producer in range(PRODUCERS)))
    await wait_until(nothing_is_left, timeout=30)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    async with engine.connect() as connection:
        seen = await connection.execute(text("select count(*) filter (where seen), count(*) from change"))
        assert seen.one() == (PRODUCERS * CHANGES, PRODUCERS * CHANGES)
        statuses = await connection.execute(text("select distinct status from worker.run"))
        assert statuses.scalars().all() == ["completed"]
    assert refresher.overlaps == 0
    assert refresher.failures > 0
    assert refresher.snoozes > 0
    assert refresher.runs < PRODUCERS * CHANGES
