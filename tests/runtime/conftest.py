"""Deliveries are made by hand here, against a database with a few tables of the tests' own."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from tests.runtime.bench import TABLES, Bench
from tests.runtime.postgres_proxy import PostgresProxy
from worker import zombies
from worker.database import create_engine
from worker.dev import EmbeddedPostgres
from worker.driver import SERVER_SETTINGS


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, template: str) -> str:
    """Name a database that has the tests' own tables, too."""
    postgres.psql(f"CREATE DATABASE template_runtime TEMPLATE {template} STRATEGY FILE_COPY")
    postgres.psql(*TABLES, database="template_runtime")
    return "template_runtime"


@pytest.fixture(scope="session")
def shared_url(postgres: EmbeddedPostgres, template: str) -> str:
    """One database for all, which each test leaves empty: a copy for each would take longer than most of them."""
    name = f"runtime_{uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    return postgres.database_url(name)


@pytest.fixture
async def bench(shared_url: str) -> AsyncIterator[Bench]:
    bench = Bench(create_engine(shared_url, pool_size=5))
    yield bench
    await bench.all("select empty()")
    await bench.close()


@pytest.fixture
async def other(bench: Bench, shared_url: str) -> AsyncIterator[Bench]:
    """Another worker on the same database."""
    del bench  # it empties the database when everybody has closed
    other = Bench(create_engine(shared_url, pool_size=5))
    yield other
    await other.close()


@pytest.fixture
async def own(database_url: str) -> AsyncIterator[Bench]:
    """A worker on a database of its own, for a test that changes tables."""
    own = Bench(create_engine(database_url, pool_size=5))
    yield own
    await own.close()


@pytest.fixture
async def proxy(
    bench: Bench, shared_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[PostgresProxy]:
    """Stands between `far` and the server, and cuts the line where a test asks for it."""
    del bench  # as in `other`
    proxy = PostgresProxy(shared_url, tmp_path_factory.mktemp("pg"))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def far(proxy: PostgresProxy) -> AsyncIterator[Bench]:
    """A worker whose connections go through the proxy."""
    far = Bench(create_engine(proxy.url, pool_size=5))
    yield far
    await far.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ledger wait 0.1 s for a run's lock, not 2 s: what happens is the same, sooner."""
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "100")
    monkeypatch.setattr(zombies, "LOCK_TIMEOUT_MS", 100)
