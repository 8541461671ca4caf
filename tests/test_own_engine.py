"""The testing kit on an engine that an application made for itself, with another pool and the driver's connections."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from worker.app import App
from worker.handler import Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.testing import drain


class Ask(Job, name="ask"):
    """Asks for a number."""


class Loose(Job, name="loose"):
    """Keeps no run."""


async def ask(job: Job, session: AsyncSession) -> int:
    return int((await session.execute(text("select 7"))).scalar_one())


APP = App(handlers=[Handler(Ask, ask), Handler(Loose, ask, once=False)])


async def test_jobs_are_drained_on_it(database_url: str) -> None:
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=NullPool)
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, Ask())
        enqueue(session, Loose())
    outcomes = await drain(APP, engine)
    await engine.dispose()
    assert [outcome for _, outcome in outcomes] == [Completed(7)] * 2
