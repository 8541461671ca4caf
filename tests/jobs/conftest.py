"""Two tiers: `session`, in a transaction that is rolled back, for what a handler does; `shop`, where jobs commit."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.app import handlers
from jobs.files import Files
from tests.jobs.shop import Shop
from worker.app import App
from worker.database import create_engine, create_sessions
from worker.dev import EmbeddedPostgres


@pytest.fixture
def app(tmp_path: Path) -> App:
    """The domain's handlers, with `tmp_path` as the folder of files."""
    return App(handlers=handlers(Files(tmp_path)))


@pytest.fixture(scope="session")
def common_url(postgres: EmbeddedPostgres, template: str) -> str:
    """One database for all tests that leave nothing in it."""
    name = f"common_{uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    return postgres.database_url(name)


@pytest.fixture
async def session(common_url: str) -> AsyncIterator[AsyncSession]:
    """A handler's session, as the runtime makes it, in a transaction that is rolled back."""
    engine = create_engine(common_url, pool_size=1)
    async with engine.connect() as connection:
        transaction = await connection.begin()
        yield create_sessions()(bind=connection)
        await transaction.rollback()
    await engine.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=4)
    yield engine
    await engine.dispose()


@pytest.fixture
def shop(app: App, engine: AsyncEngine) -> Shop:
    """The app on a database of its own, where jobs commit."""
    return Shop(app, engine)
