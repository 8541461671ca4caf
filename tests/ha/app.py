"""What workers run here: a job that leaves its number, once the test lets go of a lock (0: at once)."""

from datetime import timedelta

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.handler import Handler
from worker.job import Job

TABLES = (
    "create table asked (n int primary key)",
    "create table effect (n int)",
    # A row of it lets the transaction's COMMIT wait for the advisory lock of that number.
    "create table slow_commit (key bigint not null)",
    """create function wait_for_key() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(new.key); return null; end $$""",
    """create constraint trigger wait after insert on slow_commit deferrable initially deferred
    for each row execute function wait_for_key()""",
)


class Mark(Job, name="ha.mark"):
    """Leaves its number."""

    n: int
    lock: int = 0
    """Its commit waits for this advisory lock."""


async def mark(job: Mark, session: AsyncSession) -> None:
    await session.execute(text("insert into effect values (:n)"), {"n": job.n})
    if job.lock:
        await session.execute(text("insert into slow_commit values (:key)"), {"key": job.lock})
    structlog.get_logger("ha").warning("marked", n=job.n)


app = App(handlers=(Handler(Mark, mark, timeout=timedelta(seconds=60)),))
