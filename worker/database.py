"""The engine, made once at start-up, and what every connection and session of the runtime has in common."""

import asyncio
import os
import socket
import ssl
from collections.abc import Coroutine
from typing import Any, TypeAlias

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.prepared_stmt import PreparedStatement
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import in_greenlet

from worker.guard import Guard, GuardedSession, watch
from worker.hosts import certificates_fault, each_host, names_attributes
from worker.pipelining import going_ahead
from worker.settings import SettingsError

Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""The driver's own connection, below SQLAlchemy's."""

APPLICATION = "ratchet worker"
"""How every worker's connection is called in pg_stat_activity; what ends zombies ends nobody else."""

CONNECT_TIMEOUT_S = 10
"""For all the hosts of a URL together."""
LOCK_TIMEOUT_MS = 2_000
"""How long the runtime's own statements wait for a row."""
KEEPALIVE_S = 15
"""After this long without an answer the other side counts as gone (DESIGN §4, Begin)."""

SERVER_SETTINGS = {
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": str(KEEPALIVE_S * 1000),
}


REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    ssl.SSLCertVerificationError,
)
"""Answers of a server on which no other host of the same URL is tried."""


class CommitRefused(asyncpg.InFailedSQLTransactionError):
    """PostgreSQL answered COMMIT with ROLLBACK."""


class DatabaseAway(ConnectionError):
    """PostgreSQL can't be reached, or doesn't let us in. The text holds no URL."""

    def __init__(self, *reasons: BaseException) -> None:
        """`reasons`: one for each host that was tried."""
        told = "; ".join(f"{type(reason).__name__}: {reason}" for reason in reasons)
        super().__init__(f"PostgreSQL can't be used ({told}); check DATABASE_URL and the server.")
        self.refused = any(isinstance(reason, REFUSALS) for reason in reasons)
        """It answered, and said no, or isn't who it should be: waiting won't help."""


class ReadingConnection(asyncpg.Connection):
    """A connection that reads the answer to COMMIT, and whose guard sees it before.

    PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and no error, and asyncpg drops the tag.
    """

    guard: Guard | None = None
    """Of the attempt that has it."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Raises CommitRefused where a commit rolled back, and TransactionEnded where a handler asks for one."""
        if self.guard is not None:
            for statement in query.split(";") if query.count(";") > 1 else (query,):
                self.guard.sees(statement)
        tag: str = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;" and tag == "ROLLBACK":
            raise CommitRefused("the transaction had failed before its commit, and PostgreSQL rolled it back")
        return tag


class DirectConnection(ReadingConnection):
    """A connection to the server itself. A BEGIN may wait here for the statement that follows, to be sent with it.

    A round trip costs a worker and its server more than all else that is done to begin a transaction.
    """

    _first: "PreparedStatement[asyncpg.Record] | None" = None
    """What transactions begin with, once there was one."""
    _held_back: str | None = None
    """The BEGIN, when it has come; empty: it comes next."""

    def hold_back_begin(self) -> None:
        """The next BEGIN isn't sent until `first` is called.

        The first of a connection isn't held back: asyncpg leaves a transaction open behind what it prepares in none.
        """
        if self._first is not None:
            self._held_back = ""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As its parent's, but for a BEGIN that is held back. Nothing else ever is."""
        if self._held_back is not None and query.startswith("BEGIN "):
            self._held_back = query
            return "BEGIN"
        self._held_back = None
        return await super().execute(query, *args, timeout=timeout)

    async def first(self, query: str, *args: Any) -> asyncpg.Record | None:
        """The first row of a statement, always the same, with which a BEGIN that was held back is sent.

        Whatever is raised, a rollback is due.
        """
        if self._held_back:
            _transport_of(self).write(going_ahead(self._held_back))
            self._held_back = None
        try:
            statement = self._first = self._first or await self.prepare(query)
            return await statement.fetchrow(*args)
        except BaseException:
            self._first = None  # a migration may have changed what it was planned for
            raise


class BouncedConnection(ReadingConnection):
    """A connection through PgBouncer, which has another server behind it in each transaction (docs/adr/0023)."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """What other connections are given once and for all, each transaction is given with its BEGIN."""
        if query.startswith("BEGIN"):  # asyncpg's own; a handler is in a transaction already
            query = f"{query} SET LOCAL lock_timeout = {SERVER_SETTINGS['lock_timeout']};"
        return await super().execute(query, *args, timeout=timeout)


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
        except ValueError as error:
            raise SettingsError(UNREADABLE) from error
        except _FAILURES as error:
            if "unsupported startup parameter" in str(error):
                raise SettingsError(POOLER) from error
            failures.append(error)
    raise DatabaseAway(*failures) from failures[-1]


# asyncpg's own text may quote the password.
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
    except ValueError as error:
        raise SettingsError(UNREADABLE) from error
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
    _keep_alive(connection)
    return connection


def _keep_alive(connection: Driver) -> None:
    """Let the kernel find out that the server's host is gone."""
    sock: socket.socket = _transport_of(connection).get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_S * 1000)


def _transport_of(connection: Any) -> asyncio.Transport:
    """asyncpg has no public way to it."""
    transport: asyncio.Transport = connection._transport  # noqa: SLF001
    return transport


def application_name(pid: int, application: str = APPLICATION) -> str:
    """How the connections of a process of this host are called in pg_stat_activity, which keeps 63 bytes of it."""
    process = f":{pid}"  # which must not be what is cut off: another's connections would be taken for its own
    return f"{application} {socket.gethostname()}"[: 63 - len(process)] + process


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


# A prepared statement stays with the server that PgBouncer lent. One without a name is replaced by the next.
WITHOUT_STATEMENTS: dict[str, Any] = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}

SESSION_OPTIONS: dict[str, Any] = {"expire_on_commit": False, "join_transaction_mode": "rollback_only"}


def create_sessions() -> async_sessionmaker[AsyncSession]:
    """What makes the fresh session of every attempt, bound to the attempt's connection."""
    return async_sessionmaker(sync_session_class=GuardedSession, **SESSION_OPTIONS)
