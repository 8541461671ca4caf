"""The schedule at work, in every worker: a tick is enqueued once over all of them, in one transaction with its note."""

import asyncio
import heapq
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from worker.availability import Availability
from worker.brief import brief_transaction
from worker.faults import is_expected, is_lost_connection
from worker.models import Outbox
from worker.outbox import enqueue
from worker.reporting.observer import Observer
from worker.reporting.trace import CRON_HEADER
from worker.schedule import Cron
from worker.wire import restamp

LOOK_AT_LEAST_EVERY = timedelta(seconds=30)
"""A clock that was set, and a grace that ran out, are noticed within this."""
LOOK_AGAIN_AFTER = timedelta(seconds=1)
"""Where something stood in the way."""

# Each name by itself, whose last tick is the end of its part of the index: for several at once all are gone through.
_NOW_AND_LAST = text("""
select clock_timestamp() as now, (
    select max((select max(scheduled_at) from worker.cron_tick as tick where tick.name = given.name))
    from unnest(cast(:names as text[])) as given (name)
) as last
""")
# Also after a later tick: who was stopped between the look and the note has nothing to enqueue any more.
# Under each name that the entry goes or went by: while a deploy renames its job, old workers keep it under the old one.
_NOTE = text("""
insert into worker.cron_tick (name, scheduled_at, job_id) select name, :at, :job_id
from unnest(cast(:names as text[])) as name
where not exists (select from worker.cron_tick where name = any(cast(:names as text[])) and scheduled_at >= :at)
on conflict do nothing
""")


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
        """Until cancelled. Each entry is looked at for itself: of thousands one may tick each second."""
        began = time.monotonic()
        looks = [(began, place) for place in range(len(self._schedule))]  # a heap
        while looks:
            at, place = looks[0]
            await asyncio.sleep(max(0, at - time.monotonic()))
            wait = await self._look(self._schedule[place])
            heapq.heapreplace(looks, (time.monotonic() + wait.total_seconds(), place))

    async def tick(self, cron: Cron) -> timedelta:
        """Enqueue the entry's tick if one is due that nobody has enqueued. Returns how long the next is away."""
        async with brief_transaction(self._engine) as connection:
            looked = (await connection.execute(_NOW_AND_LAST, {"names": cron.names})).one()
            now: datetime = looked.now
            last: datetime | None = looked.last
            due = cron.newest_tick(after=last, until=now) if last else None
            if not last:
                # The first deploy: what lies behind is passed over, and this note says from when on.
                await _note(connection, cron, now, None)
            elif due:
                await _enqueue(connection, cron, due)
        return next(cron.ticks_after(now)) - now

    async def _look(self, cron: Cron) -> timedelta:
        """Tick; one entry's trouble is no other's. Returns when to look again."""
        try:
            return min(LOOK_AT_LEAST_EVERY, await self.tick(cron))
        except Exception as error:  # noqa: BLE001 - the schedule must go on; what is unexpected is reported
            if is_lost_connection(error) and not await self._availability.check():
                await self._availability.wait()
            elif not is_expected(error):
                self._observer.fault("schedule", error)
            return LOOK_AGAIN_AFTER


async def _enqueue(connection: AsyncConnection, cron: Cron, due: datetime) -> None:
    async with AsyncSession(connection, join_transaction_mode="rollback_only") as session:
        job_id = enqueue(session, cron.job, headers={CRON_HEADER: cron.name})
        # A handler tells by this time which day or month its tick is of. The worker's clock may be behind PostgreSQL's,
        # and a tick that was missed may be made up for on the next day.
        [row] = (each for each in session.new if isinstance(each, Outbox))
        row.enqueued_ms = int(due.timestamp() * 1000)
        row.message = restamp(row.message, enqueued_ms=row.enqueued_ms)
        # The note comes first: who loses the race for it enqueues nothing.
        if await _note(connection, cron, due, job_id):
            await session.flush()


async def _note(connection: AsyncConnection, cron: Cron, scheduled_at: datetime, job_id: str | None) -> bool:
    """False: somebody else has noted it under one of its names, or a later one."""
    note = {"names": cron.names, "at": scheduled_at, "job_id": job_id}
    return (await connection.execute(_NOTE, note)).rowcount == len(cron.names)
