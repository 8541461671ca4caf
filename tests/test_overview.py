"""What `worker runs` reads, where much waits and much has ended."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.reading import blocks_read, noted
from worker.database import create_engine
from worker.overview import entries

RUNS = """
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, created_at, finished_at)
select status || n, n, 'any', 'arq:queue', status, true, now() - make_interval(secs => n),
    case status when 'completed' then now() - make_interval(secs => n) end
from generate_series(1, 10000) as n, unnest(array['completed', 'retrying', 'snoozed']) as status
"""
ROWS = """
insert into worker.outbox (id, enqueued_ms, name, queue, message)
select 'row' || n, n, 'any', 'arq:queue', 'x' from generate_series(1, 10000) as n
"""
OF_BEGUN = """
insert into worker.outbox (id, enqueued_ms, name, queue, message)
select id, enqueued_ms, name, queue, 'x' from worker.run where finished_at is null
"""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=2)
    async with engine.begin() as connection:
        for statement in (RUNS, OF_BEGUN, ROWS):
            await connection.execute(text(statement))
        await connection.execute(text("analyze worker.run, worker.outbox"))
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("status", [None, "waiting", "retrying", "completed"])
async def test_the_newest_are_listed_without_reading_the_others(engine: AsyncEngine, status: str | None) -> None:
    with noted(engine) as sent:
        async with engine.connect() as connection:
            found = await entries(connection, status=status, limit=10)
    assert len(found) == 10
    assert await blocks_read(engine, *sent) < 400
