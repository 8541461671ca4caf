"""What `worker migrate` and the check at a worker's start make of a database's version."""

import asyncio

import pytest
from sqlalchemy import text

from tests.conftest import JOBS_MIGRATIONS
from worker.database import create_engine
from worker.migrate import migrate, missing_versions


async def versions_missing_after(database_url: str, statement: str) -> set[str]:
    engine = create_engine(database_url, pool_size=1, application="ratchet test")
    try:
        async with engine.begin() as connection:
            await connection.execute(text(statement))
        return await missing_versions(engine, [JOBS_MIGRATIONS])
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("select 1", set[str]()),
        ("delete from worker.alembic_version where version_num = 'worker_0002'", {"worker_0002"}),
    ],
)
async def test_a_database_behind_the_code_is_told(database_url: str, statement: str, missing: set[str]) -> None:
    assert await versions_missing_after(database_url, statement) == missing


async def test_a_database_ahead_of_the_code_serves_it_while_a_deploy_is_rolled_back(database_url: str) -> None:
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0002'"
    assert await versions_missing_after(database_url, later) == set()


async def test_migrating_a_database_ahead_of_the_code_leaves_it_as_it_is(database_url: str) -> None:
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0002'"
    assert await versions_missing_after(database_url, later) == set()
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS])
    assert await versions_missing_after(database_url, "select 1") == set()
