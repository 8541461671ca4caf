"""The driver's connection, and what the runtime adds to it. Below SQLAlchemy, which knows nothing of this."""

import asyncio
import socket
from typing import Any, TypeAlias

import asyncpg

from worker.guard import Guard

Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""The driver's own connection, below SQLAlchemy's."""

LOCK_TIMEOUT_MS = 2_000
"""How long the runtime's own statements wait for a row."""
KEEPALIVE_S = 15
"""After this long without an answer the other side counts as gone."""

SERVER_SETTINGS = {
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": str(KEEPALIVE_S * 1000),
}


class CommitRefused(asyncpg.InFailedSQLTransactionError):
    """PostgreSQL answered COMMIT with ROLLBACK."""


class ReadingConnection(asyncpg.Connection):
    """A connection that reads the answer to COMMIT, and whose guard sees it before.

    PostgreSQL answers COMMIT of a failed transaction with the tag ROLLBACK and no error, and asyncpg drops the tag.
    """

    guard: Guard | None = None
    """Of the attempt that has it."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Raises CommitRefused where a commit rolled back, and TransactionEnded where a handler asks for one."""
        if self.guard is not None:
            self.guard.sees(query, args)
        tag: str = await super().execute(query, *args, timeout=timeout)
        if query == "COMMIT;" and tag == "ROLLBACK":
            raise CommitRefused("the transaction had failed before its commit, and PostgreSQL rolled it back")
        return tag


class BouncedConnection(ReadingConnection):
    """A connection through PgBouncer, which has another server behind it in each transaction (docs/adr/0023)."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """What other connections are given once and for all, each transaction is given with its BEGIN."""
        if query.startswith("BEGIN"):  # asyncpg's own; a handler is in a transaction already
            query = f"{query} SET LOCAL lock_timeout = {SERVER_SETTINGS['lock_timeout']};"
        return await super().execute(query, *args, timeout=timeout)


def transport_of(connection: Any) -> asyncio.Transport:
    """asyncpg has no public way to it."""
    transport: asyncio.Transport = connection._transport  # noqa: SLF001
    return transport


def keep_alive(connection: Driver) -> None:
    """Let the kernel find out that the server's host is gone."""
    sock: socket.socket = transport_of(connection).get_extra_info("socket")
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, KEEPALIVE_S * 1000)
