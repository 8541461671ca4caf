"""A database for tests of jobs. Yours may be the same: it needs the extra `embedded`, and no server on the machine."""

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.app import MIGRATIONS
from worker.database import create_engine, create_sessions
from worker.dev import EmbeddedPostgres
from worker.migrate import migrate


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL for all tests, with a migrated database to copy."""
    with EmbeddedPostgres(durable=False) as server:
        server.psql("create database template_app")
        migrate(server.database_url("template_app"), [MIGRATIONS])
        yield server


@pytest.fixture
async def engine(server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    """A database of the test's own, where jobs commit."""
    server.psql("drop database if exists app", "create database app template template_app strategy file_copy")
    engine = create_engine(server.database_url("app"), pool_size=5)
    yield engine
    await engine.dispose()


@pytest.fixture
async def session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session as a handler gets it: one that commits or rolls back by itself fails here too."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield create_sessions()(bind=connection)
        await transaction.rollback()
