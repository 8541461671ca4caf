"""What is right and wrong with a place where workers are to run, and what to change."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from redis.asyncio import Redis
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.database import DatabaseAway, connect
from worker.epoch import MARKER_KEY
from worker.heartbeat import Heartbeat, live_workers
from worker.migrate import encoding_fault
from worker.outdated import missing_versions
from worker.settings import Settings
from worker.suspects.quarantine import CONNECTIONS as OF_CHILDREN

MIGRATIONS = "migrations"
OLDEST_POSTGRESQL = 15
LONG_TRANSACTION_S = 300
NOTIFY_WITHIN_S = 3.0

Verdict = Literal["ok", "warning", "fails"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of one check."""

    check: str
    verdict: Verdict
    text: str
    """What was found; where it isn't ok, also what to change."""


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

_CONNECTIONS = text("""
select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0) as usable,
    (select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()) as taken
""")
_OLDEST = text("""
select pid, extract(epoch from clock_timestamp() - xact_start)::int as age_s, application_name
from pg_stat_activity where xact_start is not null and backend_type = 'client backend' and pid <> pg_backend_pid()
order by xact_start limit 1
""")
_VERSION = text("select current_setting('server_version'), current_setting('server_version_num')::int")
_STATE = text("select installation, epoch, marker, redis_run_id from worker.relay_state")
_NOTIFY = text("select pg_notify(:channel, '')")
_NOTIFY_IS_OFF = text("select current_setting('worker.notify', true) = 'off'")


async def examine_database(engine: AsyncEngine, settings: Settings, version_locations: Sequence[Path]) -> list[Finding]:
    """The checks of PostgreSQL alone. It must answer."""
    missing = await missing_versions(engine, version_locations)
    async with engine.connect() as connection:
        return [
            await _version(connection),
            Finding(MIGRATIONS, "fails", f"Missing up to {', '.join(sorted(missing))}; run worker migrate.")
            if missing
            else Finding(MIGRATIONS, "ok", "Up to date."),
            await _connections(connection, settings),
            await _oldest_transaction(connection),
            await _pooler(connection, settings),
            await _notify(connection, settings),
        ]


async def _version(connection: AsyncConnection) -> Finding:
    version, number = (await connection.execute(_VERSION)).one()
    if number < OLDEST_POSTGRESQL * 10_000:
        return Finding("PostgreSQL", "fails", f"Version {version}; upgrade to {OLDEST_POSTGRESQL} or newer.")
    if fault := await encoding_fault(connection):
        return Finding("PostgreSQL", "fails", f"Version {version}, but {fault}")
    return Finding("PostgreSQL", "ok", f"Version {version}.")


async def _connections(connection: AsyncConnection, settings: Settings) -> Finding:
    found = (await connection.execute(_CONNECTIONS)).one()
    if settings.pgbouncer:
        return Finding("connections", "ok", f"PgBouncer holds them; {found.taken} of {found.usable} are taken now.")
    needed = settings.processes * (settings.connections + 1)
    processes = f" in {settings.processes} processes" if settings.processes > 1 else ""
    told = (
        f"A worker of concurrency {settings.concurrency}{processes} takes {needed}; "
        f"{found.taken} of {found.usable} are taken now"
    )
    if needed > found.usable:
        lower = "WORKER_PROCESSES or WORKER_CONCURRENCY," if settings.processes > 1 else "WORKER_CONCURRENCY"
        return Finding("connections", "fails", f"{told}: lower {lower} or raise max_connections.")
    at_most = needed + settings.processes * OF_CHILDREN
    if at_most > found.usable:
        hint = "raise max_connections, or a worker's death may be met with too many clients"
        return Finding("connections", "warning", f"{told}, and up to {at_most} while suspects run: {hint}.")
    if needed > found.usable - found.taken:
        return Finding("connections", "warning", f"{told}: one more worker has no room; raise max_connections.")
    return Finding("connections", "ok", f"{told}.")


async def _oldest_transaction(connection: AsyncConnection) -> Finding:
    oldest = (await connection.execute(_OLDEST)).one_or_none()
    if oldest is None or oldest.age_s < LONG_TRANSACTION_S:
        return Finding("oldest transaction", "ok", f"{oldest.age_s if oldest else 0} s old.")
    return Finding(
        "oldest transaction",
        "warning",
        f"{oldest.age_s} s old (pid {oldest.pid}, {oldest.application_name!r}); it keeps dead rows alive: end it.",
    )


async def _pooler(connection: AsyncConnection, settings: Settings) -> Finding:
    """Whether the server's process is the one that answered when we connected."""
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    pid_at_start: int = driver.get_server_pid()
    is_between = pid_at_start != (await connection.execute(text("select pg_backend_pid()"))).scalar_one()
    if is_between and not settings.pgbouncer:
        return Finding("pooler", "warning", "One stands in between; in transaction mode set WORKER_PGBOUNCER=true.")
    if settings.pgbouncer and not is_between:
        return Finding("pooler", "warning", "There is none; unset WORKER_PGBOUNCER, which costs time.")
    return Finding("pooler", "ok", "As WORKER_PGBOUNCER says.")


async def _notify(connection: AsyncConnection, settings: Settings) -> Finding:
    """Whether a notification makes its way from the database to where workers listen."""
    if settings.listens_at is None:
        told = "Nobody listens through PgBouncer, so the relay polls; point WORKER_LISTEN_URL past it for less delay."
        return Finding("notify", "ok", told)
    heard, channel = asyncio.Event(), f"ratchet_doctor_{uuid4().hex}"

    def hear(*_: object) -> None:
        heard.set()

    try:
        listener = await connect(settings.listens_at.get_secret_value(), "ratchet doctor")
    except DatabaseAway:
        name = "WORKER_LISTEN_URL" if settings.listen_url else "DATABASE_URL"
        return Finding("notify", "fails", f"{name} can't be reached to listen; correct it.")
    try:
        await listener.add_listener(channel, hear)
        await connection.execute(_NOTIFY, {"channel": channel})
        await connection.commit()
        async with asyncio.timeout(NOTIFY_WITHIN_S):
            await heard.wait()
    except TimeoutError:
        return Finding(
            "notify",
            "warning",
            "No notification came; a pooler may stand between: point WORKER_LISTEN_URL past it, or the relay polls.",
        )
    finally:
        listener.terminate()
    if (await connection.execute(_NOTIFY_IS_OFF)).scalar_one():
        return Finding("notify", "warning", "Switched off by worker.notify; the relay polls.")
    return Finding("notify", "ok", "A notification arrived.")


# --- Redis ------------------------------------------------------------------------------------------------------------


async def examine_redis(redis: Redis) -> list[Finding]:
    """The checks of Redis alone. It must answer."""
    info: dict[str, Any] = await redis.info()
    software = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    return [_kind(info, software), _memory_policy(info)]


def _kind(info: dict[str, Any], software: str) -> Finding:
    if info.get("cluster_enabled"):
        return Finding("Redis", "fails", f"{software}, a Cluster, which isn't supported; use one server or Sentinel.")
    if info.get("role", "master") != "master":
        return Finding("Redis", "fails", f"{software}, a replica; REDIS_URL must lead to the primary.")
    return Finding("Redis", "ok", f"{software}.")


def _memory_policy(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        advice = "waiting jobs may be evicted; set maxmemory-policy to noeviction"
        return Finding("Redis memory", "fails", f"The policy is {policy}: {advice}.")
    return Finding("Redis memory", "ok", "The policy is noeviction.")


# --- both -------------------------------------------------------------------------------------------------------------


async def examine_both(engine: AsyncEngine, redis: Redis) -> list[Finding]:
    """The checks of what binds the two, for a database that is up to date."""
    async with engine.connect() as connection:
        state = (await connection.execute(_STATE)).one()
    marker: bytes | None = await redis.get(MARKER_KEY + state.installation)
    return [_relay(state, marker), _workers(await live_workers(redis))]


def _relay(state: Row[Any], marker: bytes | None) -> Finding:
    if state.marker is None:
        return Finding("relay", "ok", "It hasn't run yet.")
    if marker is None or marker.decode() != state.marker:
        told = (
            "This isn't the Redis that the outbox was sent to; a running worker sends it all again. If others of this "
            "database use that one, their jobs and ours get stuck: give all the same REDIS_URL."
        )
        return Finding("relay", "warning", told)
    return Finding("relay", "ok", f"Epoch {state.epoch}; this is the Redis that the outbox was sent to.")


def _workers(workers: Sequence[Heartbeat]) -> Finding:
    if not workers:
        return Finding("workers", "warning", "None lives: nothing is relayed and nothing runs; start worker run.")
    return Finding("workers", "ok", f"{len(workers)} on {len({worker.host for worker in workers})} hosts.")
