"""What holds a chunked job back. Looked at before each chunk, in one statement; the job then gives up its slot."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.call import Work
from worker.ledger import NotDue
from worker.outcome import BUSY, Cancelled
from worker.pressure import Ceiling, Pressure

BACK_OFF = timedelta(seconds=10)
"""Until the next look, while PostgreSQL is pressed."""


@dataclass(frozen=True, slots=True)
class Held:
    """It has to wait, and counts no attempt by that."""

    reason: str
    delay: timedelta


# Its own transactions are none of these: it has none between two chunks. A row lock is waited for as a lock on a
# transaction, which belongs to no database, so what tells is whose backend waits.
_LOOK = text("""
select
    exists (
        select from worker.pause where kind = 'queue' and name = :queue or kind = 'name' and name = any(:names)
    ) as is_paused,
    (
        select parent.status from worker.run as part
            join worker.run as parent on parent.id = part.parent_id and parent.enqueued_ms = part.enqueued_ms
        where part.id = :id and part.enqueued_ms = :ms and parent.finished_at is not null
    ) as parent_status,
    (
        select next_at - clock_timestamp() from worker.run
        where id = :id and enqueued_ms = :ms and next_at > clock_timestamp() and finished_at is null
    ) as wait,
    (select max(replay_lag) from pg_stat_replication) as replication_lag,
    max(clock_timestamp() - xact_start) as transaction_age,
    count(*) filter (where pid = any(array(select l.pid from pg_locks as l where not l.granted))) as waiting_locks
from pg_stat_activity
where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
""")


class Brakes:
    """Those of one process."""

    def __init__(self, engine: AsyncEngine, ceiling: Ceiling) -> None:
        self._engine = engine
        self._ceiling = ceiling

    async def look(self, work: Work) -> Held | Cancelled | NotDue | None:
        """Why `work` may not go on, now or ever. None: it may."""
        job = work.handler.job
        asked = {**work.run.key, "queue": work.run.queue, "names": [job.job_name, *job.job_aliases]}
        async with self._engine.connect() as connection:
            row = (await connection.execute(_LOOK, asked)).one()
        if row.parent_status is not None:
            return Cancelled(f"the job that it is a partition of is {row.parent_status}")
        if row.wait is not None:
            return NotDue(row.wait)
        if row.is_paused:
            return Held(f"{work.run.name} or the queue {work.run.queue} is paused", BUSY)
        pressed = self._ceiling.reason(Pressure(row.replication_lag, row.transaction_age, row.waiting_locks))
        return Held(pressed, BACK_OFF) if pressed else None
