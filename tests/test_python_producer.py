"""The rights that `enqueue(session, …)` needs: those that the guide grants, each of them, and nothing to read with."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.docs.blocks import blocks
from worker.database import create_engine
from worker.job import Job
from worker.models import Outbox
from worker.outbox import enqueue, enqueue_many

# Exactly this one stands in the guide.
[GRANTS] = [block.text for block in blocks("sql") if "grant insert" in block.text]
NEEDED = ("usage on schema worker", "insert on worker.outbox", "select (seq) on worker.outbox")


class Note(Job, name="test.note"):
    text: str = ""


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=1)
    yield engine
    await engine.dispose()


@pytest.fixture
async def web(owner: AsyncEngine, database_url: str) -> AsyncIterator[AsyncEngine]:
    """Somebody with the guide's grants and nothing else."""
    await execute(owner, "create role web login", *filter(None, map(str.strip, GRANTS.split(";"))))
    theirs = create_engine(database_url.replace("postgres@", "web@"), pool_size=1)
    yield theirs
    await theirs.dispose()
    await execute(owner, "drop owned by web", "drop role web")


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_it_enqueues_in_every_way(web: AsyncEngine, owner: AsyncEngine) -> None:
    async with AsyncSession(web) as session, session.begin():
        ids = [
            enqueue(session, Note(), delay=timedelta(hours=1)),
            enqueue(session, Note(), at=datetime(2030, 1, 1, tzinfo=UTC), queue="slow", headers={"a": "b"}),
            enqueue(session, Note(), key="k"),
            enqueue(session, Note(), job_id="j"),
            *enqueue_many(session, [Note(text=str(number)) for number in range(100)]),
        ]
        await session.run_sync(lambda plain: ids.append(enqueue(plain, Note())))
    async with owner.connect() as connection:
        found = await connection.execute(text("select id from worker.outbox order by seq"))
        assert sorted(found.scalars()) == sorted(ids)


async def test_the_key_comes_back_from_the_insert(web: AsyncEngine) -> None:
    async with AsyncSession(web) as session, session.begin():
        enqueue(session, Note())
        [row] = session.new
        await session.flush()
        assert isinstance(row, Outbox)
        assert row.seq > 0


@pytest.mark.parametrize("right", NEEDED)
async def test_each_right_is_needed(web: AsyncEngine, owner: AsyncEngine, right: str) -> None:
    await execute(owner, f"revoke {right} from web")
    async with AsyncSession(web) as session:
        enqueue(session, Note())
        with pytest.raises(DBAPIError, match="permission denied"):
            await session.flush()
        await session.rollback()


@pytest.mark.parametrize(
    "statement",
    [
        "select message from worker.outbox",
        "select id, name from worker.outbox",
        "select from worker.run",
        "update worker.outbox set due_at = now()",
        "delete from worker.outbox",
        "select worker.enqueue('test.note', '{}')",
        "insert into worker.cron_tick (name, scheduled_at) values ('any', now())",
    ],
)
async def test_it_may_do_nothing_else(web: AsyncEngine, statement: str) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        await execute(web, statement)
