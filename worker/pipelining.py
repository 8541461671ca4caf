"""A statement that goes ahead of another: both are answered in one round trip.

asyncpg sends one thing and waits for its answer. But what comes ahead in the extended protocol without a Sync is
answered together with what follows: asyncpg passes over the ParseComplete and BindComplete of a statement that it binds
anyway, and of several CommandCompletes the last counts (`_process__bind_execute` in its coreproto.pyx). Where the first
fails, the server skips the second and its error is that of both.
"""

from functools import cache
from struct import pack
from typing import Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from worker.driver import ReadingConnection, transport_of


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
            transport_of(self).write(going_ahead(self._held_back))
            self._held_back = None
        try:
            statement = self._first = self._first or await self.prepare(query)
            return await statement.fetchrow(*args)
        except BaseException:
            self._first = None  # a migration may have changed what it was planned for
            raise


@cache
def going_ahead(statement: str) -> bytes:
    """Parse, Bind and Execute of a statement that has neither parameters nor rows; unnamed, as is its portal."""
    parse = b"\0%b\0" % statement.encode() + pack("!h", 0)
    bind = b"\0\0" + pack("!hhh", 0, 0, 0)
    execute = b"\0" + pack("!i", 0)
    return _message(b"P", parse) + _message(b"B", bind) + _message(b"E", execute)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + pack("!i", len(body) + 4) + body
