"""Three sentinels promote the replica of a Valkey that was killed under load. The worker goes on, and each job is
applied once: what the replica never had is sent again from the outbox.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import Signals
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import StartWorker
from tests.ha.app import TABLES
from tests.ha.load import ENV, load_on
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.dev.server import Server, free_port

SENTINEL = """
port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {primary} 2
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 5000
"""
NOWHERE = 1
"""A port that nobody listens at."""


class Cluster:
    """A primary, a replica, and three sentinels that watch them under the name `main`."""

    def __init__(self, stack: ExitStack) -> None:
        self.primary, self.replica = (stack.enter_context(EmbeddedValkey()) for _ in range(2))
        _ask(self.replica.url, "REPLICAOF", "127.0.0.1", _port(self.primary))
        self.ports = [free_port() for _ in range(3)]
        for port in self.ports:
            self._start_sentinel(stack, port)

    def _start_sentinel(self, stack: ExitStack, port: int) -> None:
        server = Server("Sentinel", Signals.SIGTERM)
        stack.callback(server.remove)
        config = Path(server.directory) / "conf"
        config.write_text(SENTINEL.format(port=port, primary=_port(self.primary)))

        def answers() -> bool:
            try:
                return bool(_ask(f"redis://127.0.0.1:{port}", "PING"))
            except RedisError:
                return False

        server.launch([str(self.primary._binary), str(config), "--sentinel"], ready=answers)

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/main"

    async def is_watched(self) -> bool:
        """Whether each sentinel knows of the replica and of the other sentinels, and the replica is in step."""
        for port in self.ports:
            known = _ask(f"redis://127.0.0.1:{port}", "SENTINEL MASTER", "main")
            if (known["num-slaves"], known["num-other-sentinels"]) != (1, 2):
                return False
        return bool(self._told_of("master_link_status") == "up")

    async def is_promoted(self) -> bool:
        try:
            return bool(self._told_of("role") == "master")
        except RedisConnectionError:  # it closes its clients' connections when it is promoted
            return False

    def _told_of(self, name: str) -> object:
        return _ask(self.replica.url, "INFO", "replication").get(name)

    def cut_the_replica_off(self) -> None:
        """It keeps what it has, and learns nothing more."""
        _ask(self.replica.url, "REPLICAOF", "127.0.0.1", NOWHERE)


def _port(server: EmbeddedValkey) -> int:
    return urlsplit(server.url).port or 0


def _ask(url: str, *command: str | int) -> Any:
    with Redis.from_url(url) as client:
        asking: Any = client  # redis-py leaves its answers untyped
        return asking.execute_command(*command)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture
def redis_url(cluster: Cluster) -> str:
    return cluster.url


@pytest.fixture
async def engine(database_url: str, postgres: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    postgres.psql(*TABLES, database=urlsplit(database_url).path.strip("/"))
    engine = create_engine(database_url, pool_size=2, application="producer")
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("behind", [False, True], ids=["in_step", "behind"])
async def test_the_replica_is_promoted_under_load_and_each_job_is_applied_once(
    cluster: Cluster, engine: AsyncEngine, start_worker: StartWorker, *, behind: bool
) -> None:
    await wait_until(cluster.is_watched, timeout=60)
    worker = await start_worker(**ENV)
    async with load_on(engine) as load:
        await worker.wait_for("marked", count=50, timeout=60)
        if behind:
            cluster.cut_the_replica_off()
            await load.grows_by(20)
        cluster.primary.kill()
        await wait_until(cluster.is_promoted, timeout=60)
        await load.grows_by(50)
    await worker.wait_for("redis_changed", timeout=60)
    await load.is_applied_once()
    assert await worker.stop() == 0
