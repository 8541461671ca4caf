"""A statement that goes ahead of another: both are answered in one round trip.

asyncpg sends one thing and waits for its answer. But what comes ahead in the extended protocol without a Sync is
answered together with what follows: asyncpg passes over the ParseComplete and BindComplete of a statement that it binds
anyway, and of several CommandCompletes the last counts (`_process__bind_execute` in its coreproto.pyx). Where the first
fails, the server skips the second and its error is that of both.
"""

from functools import cache
from struct import pack


@cache
def going_ahead(statement: str) -> bytes:
    """Parse, Bind and Execute of a statement that has neither parameters nor rows; unnamed, as is its portal."""
    parse = b"\0%b\0" % statement.encode() + pack("!h", 0)
    bind = b"\0\0" + pack("!hhh", 0, 0, 0)
    execute = b"\0" + pack("!i", 0)
    return _message(b"P", parse) + _message(b"B", bind) + _message(b"E", execute)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + pack("!i", len(body) + 4) + body
