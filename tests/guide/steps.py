"""What the chapters begin with, so that each shows its own matter alone."""

from datetime import UTC, datetime

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from worker.job import Job
from worker.models import Run
from worker.outbox import enqueue

LONG_AGO = datetime(2021, 1, 1, 12, tzinfo=UTC)


async def add_user(engine: AsyncEngine, email: str = "ada@example.com", name: str = "Ada") -> int:
    """Commit a user, last seen long ago, and return its id."""
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        user = User(email=email, name=name, last_seen_at=LONG_AGO)
        session.add(user)
    return user.id


async def commit(engine: AsyncEngine, job: Job) -> str:
    """Enqueue `job` in a transaction of its own and return its id."""
    async with AsyncSession(engine) as session, session.begin():
        return enqueue(session, job)


async def run_of(engine: AsyncEngine, job_id: str) -> Run:
    """The one run of this id."""
    async with AsyncSession(engine) as session:
        return (await session.scalars(select(Run).where(Run.id == job_id))).one()


async def skip_waits(engine: AsyncEngine) -> None:
    """Make due what is delayed, snoozed or backs off."""
    async with engine.begin() as connection:
        await connection.execute(text("update worker.outbox set due_at = now() where due_at > now()"))
        await connection.execute(text("update worker.run set next_at = now() where next_at > now()"))
