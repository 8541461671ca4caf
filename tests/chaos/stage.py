"""Where it is played: both servers, the shop, and three workers behind breakable lines; all on loopback."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs.app import MIGRATIONS
from tests.chaos.app import SLOTS
from tests.chaos.crew import Member
from tests.chaos.plan import WORKERS
from tests.support.proxy import Proxy
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.heartbeat import live_workers
from worker.migrate import migrate
from worker.wire import IN_PROGRESS_KEY

DATABASE, ROLE = "shop", "chaos"
SKUS, SCARCE = 40, "scarce"
PLENTY = 1_000_000
USERS = 50

AWAY = (RedisError, OSError, RuntimeError)
"""What an ask of Valkey comes to while it is away. RuntimeError: uvloop's, of a connection that was just closed."""

# A commit that was answered is in the log of the operating system; a crash of PostgreSQL loses nothing of it.
OPTIONS = {"synchronous_commit": "on", "log_min_messages": "fatal"}


@dataclass(frozen=True, slots=True)
class Secrets:
    """What may be written nowhere by anything but the servers themselves."""

    password: str
    token: str

    def all(self) -> tuple[str, ...]:
        return self.password, self.token


@dataclass(slots=True)
class Stage:
    """What producers, faults and judge share."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    crew: list[Member]
    producers: Proxy
    """The producers' line to PostgreSQL."""
    secrets: Secrets
    folder: Path
    database_url: str
    """Past all proxies."""
    locks: dict[str, asyncio.Lock] = field(default_factory=dict[str, asyncio.Lock])
    outages: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When a server was away for everybody, by time.monotonic()."""

    takeovers_s: list[float] = field(default_factory=list[float])
    refills_s: list[float] = field(default_factory=list[float])
    """How long it took until others went on; only where no server was away meanwhile."""
    watches: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    """What measures that."""

    def lock(self, of: str) -> asyncio.Lock:
        """Held by whoever breaks `of`."""
        return self.locks.setdefault(of, asyncio.Lock())

    def url_through(self, proxy: Proxy) -> str:
        return postgres_url(self.secrets, proxy)

    @asynccontextmanager
    async def asking(self) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection past all proxies. Raises as asyncpg does where the server is away."""
        connection = await asyncpg.connect(self.database_url, timeout=5)
        try:
            yield connection
        finally:
            await connection.close(timeout=2)

    async def value(self, query: str, *args: object) -> Any:
        """The one value of `query`; None while PostgreSQL is away."""
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with self.asking() as connection:
                return await connection.fetchval(query, *args)
        return None

    async def held_by(self, pids: set[int]) -> dict[str, bytes]:
        """The jobs that these processes hold, and each one's token; none while Valkey is away."""
        redis: Any = Redis.from_url(self.valkey.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            names = {worker.name for worker in await live_workers(redis) if worker.pid in pids}
            keys: list[bytes] = [key async for key in redis.scan_iter(f"{IN_PROGRESS_KEY}*", count=1000)]
        except AWAY:
            return {}
        finally:
            await redis.aclose()
        held = await self.tokens([key.decode().removeprefix(IN_PROGRESS_KEY) for key in keys])
        return {job_id: token for job_id, token in held.items() if token.decode().partition(".")[0] in names}

    async def tokens(self, job_ids: Sequence[str]) -> dict[str, bytes]:
        """By whom these jobs are held, where they are; none while Valkey is away."""
        redis: Any = Redis.from_url(self.valkey.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            found: list[bytes | None] = await redis.mget([IN_PROGRESS_KEY + job_id for job_id in job_ids] or ["-"])
        except AWAY:
            return {}
        finally:
            await redis.aclose()
        return {job_id: token for job_id, token in zip(job_ids, found, strict=False) if token}

    async def living(self) -> int:
        """Worker processes that say so."""
        redis = Redis.from_url(self.valkey.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            return len(await live_workers(redis))
        except AWAY:
            return 0
        finally:
            await redis.aclose()

    async def queued(self) -> int | None:
        """Jobs in Redis; None while it is away."""
        redis = Redis.from_url(self.valkey.url, socket_timeout=1, socket_connect_timeout=1)
        try:
            count: int = await redis.zcard("arq:queue")
        except AWAY:
            return None
        finally:
            await redis.aclose()
        return count

    def was_whole(self, since: float) -> bool:
        """Whether no server was away since then."""
        return all(end < since for _, end in self.outages)

    @asynccontextmanager
    async def outage(self) -> AsyncGenerator[None]:
        """Until this ends, and a moment longer, nothing that is measured counts."""
        began = time.monotonic()
        self.outages.append((began, float("inf")))
        try:
            yield
        finally:
            self.outages.remove((began, float("inf")))
            self.outages.append((began, time.monotonic() + 1))


def postgres_url(secrets: Secrets, proxy: Proxy) -> str:
    assert isinstance(proxy.address, tuple)
    return f"postgresql://{ROLE}:{secrets.password}@{proxy.address[0]}:{proxy.address[1]}/{DATABASE}"


@asynccontextmanager
async def staged(folder: Path, secrets: Secrets, processes: Sequence[int], *, lease_s: float) -> AsyncGenerator[Stage]:
    """Servers that run, a shop that is open, and workers that aren't started yet."""
    postgres = EmbeddedPostgres(durable=False, options=OPTIONS)
    valkey = EmbeddedValkey()
    crew: list[Member] = []
    lines: list[Proxy] = []
    try:
        await asyncio.gather(asyncio.to_thread(postgres.start), asyncio.to_thread(valkey.start))
        await asyncio.to_thread(_open_shop, postgres, secrets)
        socket = Path(postgres.url.partition("host=")[2]) / ".s.PGSQL.5432"
        valkey_at = urlsplit(valkey.url)
        for _ in range(WORKERS):
            lines += Proxy(socket, ("127.0.0.1", 0)), Proxy(("127.0.0.1", valkey_at.port or 0), ("127.0.0.1", 0))
        producers = Proxy(socket, ("127.0.0.1", 0))
        lines.append(producers)
        for line in lines:
            await line.start()
        for number in range(WORKERS):
            to_postgres, to_valkey = lines[2 * number : 2 * number + 2]
            environment = _environment(secrets, to_postgres, to_valkey, lease_s)
            name = f"worker-{number + 1}"
            crew.append(Member(name, processes[number], folder, environment, to_postgres, to_valkey))
        yield Stage(postgres, valkey, crew, producers, secrets, folder, postgres.database_url(DATABASE))
    finally:
        for member in crew:
            member.bury()
        for line in lines:
            await line.stop()
        await asyncio.gather(asyncio.to_thread(postgres.close), asyncio.to_thread(valkey.close))


def _environment(secrets: Secrets, to_postgres: Proxy, to_valkey: Proxy, lease_s: float) -> dict[str, str]:
    assert isinstance(to_valkey.address, tuple)
    return {
        "DATABASE_URL": postgres_url(secrets, to_postgres),
        "REDIS_URL": f"redis://{to_valkey.address[0]}:{to_valkey.address[1]}",
        "WORKER_CONCURRENCY": str(SLOTS),
        "WORKER_LEASE": str(lease_s),
        "WORKER_SWEEP_INTERVAL": "5",
        "WORKER_SHUTDOWN_GRACE": "5",
        "WORKER_LOG_FORMAT": "json",
    }


def _open_shop(postgres: EmbeddedPostgres, secrets: Secrets) -> None:
    Path(postgres.psql("show hba_file")).write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    postgres.psql("select pg_reload_conf()")
    postgres.psql(f"create role {ROLE} login createrole password '{secrets.password}'")
    postgres.psql(f"create database {DATABASE} owner {ROLE}")
    # psql and the migrations go through the socket, as the administrator; the tables become the workers'.
    migrate(postgres.database_url(DATABASE), (MIGRATIONS,))
    script = Path(__file__).with_name("shop.sql").read_text()
    postgres.psql(script, database=DATABASE)
    postgres.psql(
        f"insert into users (email, name) select '{secrets.token}-' || n || '@shop.example', 'Customer ' || n "
        f"from generate_series(0, {USERS - 1}) as n",
        f"insert into products (sku, name, price_cents, stock) select 'sku-' || n, 'Ware ' || n, 100 + n, {PLENTY} "
        f"from generate_series(0, {SKUS - 1}) as n",
        f"insert into products (sku, name, price_cents, stock) values ('{SCARCE}', 'Scarce ware', 100, 20)",
        "insert into chaos.shelf select sku, stock from products",
        *(f"grant usage on schema {schema} to {ROLE}" for schema in ("chaos", "worker", "public")),
        *(f"grant all on all tables in schema {schema} to {ROLE}" for schema in ("chaos", "worker", "public")),
        *(f"grant all on all sequences in schema {schema} to {ROLE}" for schema in ("chaos", "worker", "public")),
        f"grant execute on all functions in schema worker to {ROLE}",
        database=DATABASE,
    )
