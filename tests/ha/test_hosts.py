"""Workers on hosts of their own, one of which is cut off in mid-commit and comes back after its lease: one effect."""

from collections.abc import AsyncIterator, Iterator
from signal import Signals

import pytest
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.ha.app import TABLES, Mark
from tests.ha.load import ENV
from tests.support.locks import locked
from tests.support.namespaces import Network, needs_namespaces
from tests.support.networked import HBA, NetworkedPostgres
from tests.support.processes import WorkerProcess
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.dev import EmbeddedValkey
from worker.dev.server import Server, free_port
from worker.migrate import migrate
from worker.outbox import enqueue

pytestmark = needs_namespaces
LOCK = 7


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def server(network: Network) -> Iterator[NetworkedPostgres]:
    with NetworkedPostgres(network.address, hba=f"{HBA}host all all {network.range} trust\n") as server:
        migrate(server.url)
        server.psql(*TABLES)
        yield server


@pytest.fixture
def valkey_url(network: Network) -> Iterator[str]:
    process, port = Server("Valkey", Signals.SIGTERM), free_port()
    binary = EmbeddedValkey()._binary

    def answers() -> bool:
        try:
            with Redis(host=network.address, port=port) as client:
                return bool(client.ping())
        except RedisError:
            return False

    options = ("--bind", network.address, "--port", str(port), "--protected-mode", "no", "--save", "")
    process.launch([str(binary), *options], ready=answers)
    yield f"redis://{network.address}:{port}"
    process.remove()


@pytest.fixture
async def engine(server: NetworkedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(server.url, pool_size=3, application="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def workers(
    network: Network, server: NetworkedPostgres, valkey_url: str
) -> AsyncIterator[dict[str, WorkerProcess]]:
    """Start a worker on each of two hosts."""
    database_url = f"postgresql://postgres@{server.location}/postgres"
    env = {**ENV, "DATABASE_URL": database_url, "REDIS_URL": valkey_url, "WORKER_CONCURRENCY": "2"}
    hosts = [network.host(), network.host()]
    started = {host: await WorkerProcess.start("run", env=env, host=host) for host in hosts}
    yield started
    for worker in started.values():
        await worker.kill()


@pytest.mark.parametrize("commits", [True, False], ids=["its_commit_arrived", "its_commit_did_not"])
async def test_a_host_that_is_cut_off_in_mid_commit_and_comes_back_after_its_lease_has_one_effect(
    network: Network,
    server: NetworkedPostgres,
    engine: AsyncEngine,
    workers: dict[str, WorkerProcess],
    *,
    commits: bool,
) -> None:
    async def commit_waits() -> bool:
        waiting = "select count(*) from pg_stat_activity where query = 'COMMIT;' and wait_event = 'advisory'"
        return int(server.psql(waiting)) > 0

    async def one_has_marked() -> bool:
        return any(map(_has_marked, workers.values()))

    async def effects() -> int:
        return int(server.psql("select count(*) from effect"))

    async with locked(engine, LOCK):
        async with AsyncSession(engine) as session, session.begin():
            enqueue(session, Mark(n=1, lock=LOCK))
        await wait_until(commit_waits, timeout=60)
        await wait_until(one_has_marked, timeout=60)
        cut, healthy = sorted(workers, key=lambda host: _has_marked(workers[host]), reverse=True)
        network.pull(cut)
        if not commits:
            # The other waits for the run, ends the backend of the one that is cut off, and does the work itself.
            await workers[healthy].wait_for("zombie_ended", timeout=60)
            await workers[healthy].wait_for("marked", timeout=60)
    ending = "duplicate" if commits else "completed"
    await workers[healthy].wait_for(ending, timeout=60)
    assert await effects() == 1
    network.plug(cut)

    # Back again, it works on: two more jobs, and whatever it still had in its hands has no second effect.
    async with AsyncSession(engine) as session, session.begin():
        for n in (2, 3):
            enqueue(session, Mark(n=n))

    async def all_done() -> bool:
        return server.psql("select count(*) from worker.outbox") == "0"

    await wait_until(all_done, timeout=60)
    assert await workers[healthy].stop() == 0
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, Mark(n=4))
    await workers[cut].wait_for("marked", n=4, timeout=60)
    assert await workers[cut].stop() == 0
    assert server.psql("select n from effect order by n") == "1\n2\n3\n4"
    assert server.psql("select distinct status from worker.run") == "completed"


def _has_marked(worker: WorkerProcess) -> bool:
    return any(line.get("event") == "marked" for line in worker.lines)
