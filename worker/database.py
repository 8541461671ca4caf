"""The engine, made once at start-up, and what every connection and session of the runtime has in common."""

import os
import socket
import ssl
from collections.abc import Coroutine
from hashlib import sha256
from typing import Any

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import in_greenlet

from worker.driver import SERVER_SETTINGS, BouncedConnection, Driver, keep_alive
from worker.guard import GuardedSession, watch
from worker.hosts import certificates_fault, each_host, names_attributes
from worker.pipelining import DirectConnection
from worker.settings import SettingsError

APPLICATION = "ratchet worker"
"""How every worker's connection is called in pg_stat_activity; what ends zombies ends nobody else."""

DIGEST = 12
"""Characters that stand for the beginning of a host's name that is too long."""
CONNECT_TIMEOUT_S = 10
"""For all the hosts of a URL together."""
REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    ssl.SSLCertVerificationError,
)
"""Answers of a server on which no other host of the same URL is tried."""


class DatabaseAway(ConnectionError):
    """PostgreSQL can't be reached, or doesn't let us in. The text holds no URL."""

    def __init__(self, *reasons: BaseException) -> None:
        """`reasons`: one for each host that was tried."""
        told = "; ".join(f"{type(reason).__name__}: {reason}" for reason in reasons)
        super().__init__(f"PostgreSQL can't be used ({told}); check DATABASE_URL and the server.")
        self.refused = any(isinstance(reason, REFUSALS) for reason in reasons)
        """It answered, and said no, or isn't who it should be: waiting won't help."""


class RuntimePool(AsyncAdaptedQueuePool):
    """A pool that never grows, so what lies in it is taken and given back without asking the server anything."""


def plain_url(url: str) -> str:
    """`url` as asyncpg and psql take it: without SQLAlchemy's driver suffix."""
    scheme, _, rest = url.partition("://")
    return f"postgresql://{rest}" if scheme in {"postgres", "postgresql+asyncpg"} else url


async def connect(url: str, application: str, *, pgbouncer: bool = False) -> Driver:
    """One connection, as the pool makes them, to the first host that is a primary. asyncpg reads sslmode and the rest.

    Raises DatabaseAway, and SettingsError for a URL that can't be read, or that leads to a pooler without saying so.
    """
    hosts, failures = _hosts(url), list[BaseException]()
    for host in hosts:
        try:
            return await _connect(host, application, CONNECT_TIMEOUT_S / len(hosts), pgbouncer=pgbouncer)
        except REFUSALS as error:  # before ValueError, which a certificate's error is too
            raise DatabaseAway(error) from error
        except ValueError:
            raise SettingsError(UNREADABLE) from None
        except _FAILURES as error:
            if "unsupported startup parameter" in str(error):
                raise SettingsError(POOLER) from error
            failures.append(error)
    raise DatabaseAway(*failures) from failures[-1]


# The text of what raised may quote the password: it isn't told here, and not in the traceback that --debug shows.
UNREADABLE = (
    "DATABASE_URL can't be used: asyncpg can't read it; check its parts, and write special characters of user "
    "and password as %XX."
)
POOLER = "DATABASE_URL leads to a PgBouncer, which refuses what a session is set to; set WORKER_PGBOUNCER=true."
_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


def _hosts(url: str) -> list[str]:
    """Raises SettingsError."""
    try:
        hosts = each_host(plain_url(url))
        fault = certificates_fault(url)
    except ValueError:
        raise SettingsError(UNREADABLE) from None
    if fault:
        raise SettingsError(f"DATABASE_URL can't be used: {fault}.")
    return hosts


async def _connect(host: str, application: str, timeout_s: float, *, pgbouncer: bool) -> Driver:
    settings = {} if pgbouncer else SERVER_SETTINGS
    connection = await asyncpg.connect(
        host,
        connection_class=BouncedConnection if pgbouncer else DirectConnection,
        timeout=timeout_s,
        statement_cache_size=0 if pgbouncer else 100,
        target_session_attrs=None if pgbouncer or names_attributes(host) else SessionAttribute.primary,
        server_settings={**settings, "application_name": application},
    )
    keep_alive(connection)
    return connection


def application_name(pid: int, application: str = APPLICATION) -> str:
    """How the connections of a process of this host are called in pg_stat_activity, which keeps 63 bytes of it."""
    # What is cut off must not tell two processes apart, or another's connections would be taken for its own. Of a long
    # name the end is what people know a pod by.
    host, process = socket.gethostname(), f":{pid}"
    room = 62 - len(application) - len(process)
    if len(host) > room:
        digest = sha256(host.encode()).hexdigest()[:DIGEST]
        host = digest + host[len(host) - room + DIGEST :]
    return f"{application} {host}{process}"


def create_engine(url: str, *, pool_size: int, application: str = APPLICATION, pgbouncer: bool = False) -> AsyncEngine:
    """The one engine of a process. Its pool never grows: jobs wait in Redis, not for a connection.

    pgbouncer: whether `url` leads through one in transaction mode.
    """
    name = application_name(os.getpid(), application)

    def connecting() -> Coroutine[Any, Any, Driver]:
        return connect(url, name, pgbouncer=pgbouncer)

    def create() -> Any:
        if not in_greenlet():
            raise MissingGreenlet("A connection is made inside a greenlet only; worker.connection then enters one.")
        dbapi: Any = engine.dialect.dbapi
        return dbapi.connect(async_creator_fn=connecting, **(WITHOUT_STATEMENTS if pgbouncer else {}))

    engine = create_async_engine(
        "postgresql+asyncpg://",
        creator=create,
        poolclass=RuntimePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,
    )
    watch(engine.sync_engine)
    return engine


def read_committed(engine: AsyncEngine) -> AsyncEngine:
    """The same, whose transactions see what was committed before each statement, whatever the database is set to.

    The runtime's own are written for that. What belongs to a handler or a producer isn't made with this.
    """
    return engine.execution_options(isolation_level="READ COMMITTED")


# A prepared statement stays with the server that PgBouncer lent. One without a name is replaced by the next.
WITHOUT_STATEMENTS: dict[str, Any] = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}

SESSION_OPTIONS: dict[str, Any] = {"expire_on_commit": False, "join_transaction_mode": "rollback_only"}


def create_sessions() -> async_sessionmaker[AsyncSession]:
    """Sessions as a handler gets them, for tests of your own; bind each to a connection.

    An attempt's is the same, made when it is first used (worker/lazy_session.py).
    """
    return async_sessionmaker(sync_session_class=GuardedSession, **SESSION_OPTIONS)
