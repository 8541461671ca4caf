"""The engine, made once at start-up, and what every connection and session of the runtime has in common."""

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy.exc import MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util.concurrency import in_greenlet

from worker.guard import Guard, GuardedSession, watch
from worker.settings import SettingsError

Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""The driver's own connection, below SQLAlchemy's."""

APPLICATION = "ratchet worker"
"""How every worker's connection is called in pg_stat_activity; what ends zombies ends nobody else."""

CONNECT_TIMEOUT_S = 10
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


class CommitRefused(asyncpg.InFailedSQLTransactionError):
    """PostgreSQL answered COMMIT with ROLLBACK."""


class DatabaseAway(ConnectionError):
    """PostgreSQL can't be reached, or doesn't let us in. The text holds no URL."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(
            f"PostgreSQL can't be used ({type(reason).__name__}: {reason}); check DATABASE_URL and the server."
        )
        self.refused = isinstance(
            reason,
            asyncpg.InvalidAuthorizationSpecificationError
            | asyncpg.InvalidCatalogNameError
            | asyncpg.InsufficientPrivilegeError,
        )
        """It answered, and said no: waiting won't help."""


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


class RuntimePool(AsyncAdaptedQueuePool):
    """A pool that never grows, so what lies in it is taken and given back without asking the server anything."""


def plain_url(url: str) -> str:
    """`url` as asyncpg and psql take it: without SQLAlchemy's driver suffix."""
    scheme, _, rest = url.partition("://")
    return f"postgresql://{rest}" if scheme in {"postgres", "postgresql+asyncpg"} else url


async def connect(url: str, application: str) -> "asyncpg.Connection[asyncpg.Record]":
    """One connection, as the pool makes them. asyncpg reads several hosts, sslmode and socket folders from the URL.

    Raises DatabaseAway, and SettingsError for a URL that asyncpg can't read.
    """
    try:
        connection = await asyncpg.connect(
            plain_url(url),
            connection_class=ReadingConnection,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={**SERVER_SETTINGS, "application_name": application},
        )
    except ValueError as error:
        # Its text may quote the password.
        raise SettingsError(
            "DATABASE_URL can't be used: asyncpg can't read it; check its parts, and write special characters of user "
            "and password as %XX."
        ) from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseAway(error) from error
    _keep_alive(connection)
    return connection


def _keep_alive(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Let the kernel find out that the server's host is gone. asyncpg has no public way to its socket."""
    transport: asyncio.Transport = connection._transport  # type: ignore[attr-defined]  # noqa: SLF001  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_S * 1000)


def application_name(pid: int, application: str = APPLICATION) -> str:
    """How the connections of a process of this host are called in pg_stat_activity, which keeps 63 bytes of it."""
    return f"{application} {socket.gethostname()}:{pid}"[:63]


def create_engine(url: str, *, pool_size: int, application: str = APPLICATION) -> AsyncEngine:
    """The one engine of a process. Its pool never grows: jobs wait in Redis, not for a connection."""
    name = application_name(os.getpid(), application)

    def create() -> Coroutine[Any, Any, Driver]:
        if not in_greenlet():
            raise MissingGreenlet("A connection is made inside a greenlet only; worker.connection then enters one.")
        return connect(url, name)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=create,
        poolclass=RuntimePool,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,
    )
    watch(engine.sync_engine)
    return engine


SESSION_OPTIONS: dict[str, Any] = {"expire_on_commit": False, "join_transaction_mode": "rollback_only"}


def create_sessions() -> async_sessionmaker[AsyncSession]:
    """What makes the fresh session of every attempt, bound to the attempt's connection."""
    return async_sessionmaker(sync_session_class=GuardedSession, **SESSION_OPTIONS)
