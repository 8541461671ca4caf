"""The testing kit on an engine that an application made for itself, with another pool and the driver's connections."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, Pool, StaticPool

from jobs.users.models import User
from worker.app import App
from worker.errors import SwallowedError, TransactionEnded
from worker.handler import Handler
from worker.job import Job
from worker.models import Outbox, Run
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.testing import drain, perform


class Ask(Job, name="ask"):
    """Asks for a number."""


class Loose(Job, name="loose"):
    """Keeps no run."""


async def ask(job: Job, session: AsyncSession) -> int:
    return int((await session.execute(text("select 7"))).scalar_one())


APP = App(handlers=[Handler(Ask, ask), Handler(Loose, ask, once=False)])


async def test_jobs_are_drained_on_it(database_url: str) -> None:
    engine = engine_of(database_url, NullPool)
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, Ask())
        enqueue(session, Loose())
    outcomes = await drain(APP, engine)
    await engine.dispose()
    assert [outcome for _, outcome in outcomes] == [Completed(7)] * 2


def engine_of(database_url: str, pool: type[Pool] | None = None) -> AsyncEngine:
    return create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"), poolclass=pool)


@pytest.mark.parametrize("pool", [None, NullPool, StaticPool])
async def test_one_is_performed_on_it(database_url: str, pool: type[Pool] | None) -> None:
    engine = engine_of(database_url, pool)
    async with AsyncSession(engine) as session:
        assert await perform(APP, Ask(), session) == 7
        assert await perform(APP, Ask(), session) == 7
    await engine.dispose()


async def test_one_is_performed_in_a_session_of_several_engines(database_url: str) -> None:
    engine = engine_of(database_url)

    async def look(job: Ask, session: AsyncSession) -> int:
        return len((await session.scalars(select(User))).all())

    async with AsyncSession(binds={User: engine, Run: engine, Outbox: engine}) as session:
        assert await perform(App(handlers=[Handler(Ask, look)]), Ask(), session) == 0
    await engine.dispose()


async def closes_and_fails(job: Ask, session: AsyncSession) -> None:
    await session.close()
    raise KeyError("its own")


async def rolls_back(job: Ask, session: AsyncSession) -> None:
    await session.execute(text("select 1"))
    await session.rollback()


async def commits(job: Ask, session: AsyncSession) -> None:
    await session.commit()


async def closes(job: Ask, session: AsyncSession) -> None:
    await session.close()


async def swallows_a_flush(job: Ask, session: AsyncSession) -> None:
    session.add_all([User(email="a@example.org", name="A"), User(email="a@example.org", name="B")])
    with suppress(IntegrityError):
        await session.flush()


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (closes_and_fails, KeyError),
        (rolls_back, TransactionEnded),
        (commits, TransactionEnded),
        (closes, TransactionEnded),
        (swallows_a_flush, SwallowedError),
    ],
)
async def test_what_is_wrong_is_told_as_it_is(
    database_url: str, handler: Callable[[Ask, AsyncSession], Awaitable[None]], error: type[Exception]
) -> None:
    engine = engine_of(database_url)
    async with AsyncSession(engine) as session:
        with pytest.raises(error):
            await perform(App(handlers=[Handler(Ask, handler)]), Ask(), session)
    await engine.dispose()
