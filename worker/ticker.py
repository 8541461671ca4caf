"""The schedule at work, in every worker: each tick is enqueued once over all of them, in one transaction with its note."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from worker.availability import Availability
from worker.faults import is_expected, is_lost_connection
from worker.models import CronTick
from worker.outbox import enqueue
from worker.reporting.observer import Observer
from worker.reporting.trace import CRON_HEADER
from worker.schedule import Cron

LOOK_AT_LEAST_EVERY = timedelta(seconds=30)
"""A clock that was set, and a grace that ran out, are noticed within this."""


class Ticker:
    """Enqueues what is due. Now is PostgreSQL's clock."""

    def __init__(
        self, engine: AsyncEngine, schedule: Sequence[Cron], availability: Availability, observer: Observer
    ) -> None:
        self._engine = engine
        self._schedule = schedule
        self._availability = availability
        self._observer = observer

    async def run(self) -> None:
        """Until cancelled."""
        while self._schedule:
            wait = LOOK_AT_LEAST_EVERY
            try:
                wait = await self.tick()
            except Exception as error:  # noqa: BLE001 - the schedule must go on; what is unexpected is reported
                if is_lost_connection(error):
                    await self._availability.check()
                    await self._availability.wait()
                    continue
                if not is_expected(error):
                    self._observer.fault("schedule", error)
            await asyncio.sleep(wait.total_seconds())

    async def tick(self) -> timedelta:
        """Enqueue every entry's tick that is due and that nobody has enqueued. Returns how long the next is away."""
        now = datetime.min
        for cron in self._schedule:
            # A transaction an entry: its row is all that two workers could ever wait for.
            async with AsyncSession(self._engine) as session, session.begin():
                now = await _tick(session, cron)
        upcoming = min(next(cron.ticks_after(now)) for cron in self._schedule)
        return min(LOOK_AT_LEAST_EVERY, max(timedelta(milliseconds=10), upcoming - now))


async def _tick(session: AsyncSession, cron: Cron) -> datetime:
    now: datetime = (await session.execute(select(func.clock_timestamp()))).scalar_one()
    newest = select(CronTick.scheduled_at).where(CronTick.name == cron.name).order_by(CronTick.scheduled_at.desc()).limit(1)
    last = (await session.execute(newest)).scalar_one_or_none()
    if last is None:
        # The first deploy: what lies behind is passed over, and this note says from when on.
        await _note(session, cron, now, None)
        return now
    due = cron.newest_tick(after=last, until=now)
    # The note comes first: who loses the race for it enqueues nothing.
    if due is not None and await _note(session, cron, due, "pending"):
        job_id = enqueue(session, cron.job, headers={CRON_HEADER: cron.name})
        tick = await session.get_one(CronTick, (cron.name, due))
        tick.job_id = job_id
    return now


async def _note(session: AsyncSession, cron: Cron, scheduled_at: datetime, job_id: str | None) -> bool:
    note = insert(CronTick).values(name=cron.name, scheduled_at=scheduled_at, job_id=job_id)
    noted = await session.execute(note.on_conflict_do_nothing().returning(CronTick.name))
    return noted.scalar_one_or_none() is not None
