"""Real servers for every test: a PostgreSQL and a Valkey for each process of pytest, a new database for each test.

A test may stop, crash or empty the servers: nobody else uses them, and the next test finds them running and clean.
"""

import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest
from hypothesis import settings
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tests.support.leaks import connection_leaks, key_leaks, task_leaks, thread_leaks
from tests.support.processes import WorkerProcess
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.migrate import migrate

JOBS_MIGRATIONS = Path(__file__).parents[1] / "jobs" / "migrations" / "versions"


def pytest_configure() -> None:
    """No test asserts a time, hypothesis's 200 ms for an example neither: machines are shared."""
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


class StartWorker(Protocol):
    async def __call__(self, *args: str, **env: str) -> WorkerProcess:
        """Start `worker ARGS…`, by default `worker run`, on the test's servers; `env` adds to its environment."""
        ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """Name a database that is migrated and empty, to be copied."""
    postgres.psql("CREATE DATABASE template_ratchet")
    migrate(postgres.database_url("template_ratchet"), version_locations=[JOBS_MIGRATIONS])
    return "template_ratchet"


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Copy the migrated database for one test. Every connection to it must be closed when the test ends."""
    name = f"test_{uuid4().hex}"
    # FILE_COPY was measured: 30 ms against 60 to 130 with WAL_LOG.
    postgres.psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield postgres.database_url(name)
    if not postgres.is_running():
        postgres.start()
    leaks = connection_leaks(postgres, name)
    postgres.psql(f"DROP DATABASE {name} WITH (FORCE)")
    _refuse(leaks)


@pytest.fixture
def redis_url(valkey: EmbeddedValkey, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give an empty Redis, whose keys are looked through after the test."""
    yield valkey.url
    if not valkey.is_running():
        valkey.start()
    client = SyncRedis.from_url(valkey.url)
    try:
        leaks = [] if request.node.get_closest_marker("leaves_keys") else key_leaks(client)
        client.flushall()
    finally:
        client.close()
    _refuse(leaks)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def start_worker(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Start `worker` commands as processes of their own; what still runs when the test ends is killed."""
    started: list[WorkerProcess] = []

    async def start(*args: str, **env: str) -> WorkerProcess:
        servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_FILES_DIR": str(tmp_path)}
        process = await WorkerProcess.start(*(args or ("run",)), env={**servers, **env})
        started.append(process)
        return process

    yield start
    for process in started:
        await process.kill()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    _refuse(thread_leaks(before))


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    _refuse(await task_leaks())


@pytest.fixture(autouse=True)
def check_tasks(no_thread_is_left: None, request: pytest.FixtureRequest) -> None:
    """Look for tasks after an async test; a sync one has no loop, and needn't start one for this.

    It stands on `no_thread_is_left`, so the threads are counted last, after the loop has closed.
    """
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_task_is_left")


def _refuse(leaks: list[str]) -> None:
    if leaks:
        pytest.fail("\n".join(leaks), pytrace=False)
