"""redis-py's connections, which say that they are lost where uvloop says something else.

uvloop refuses to write to a connection that has just been closed with a RuntimeError. redis-py lets it through, and it
would be taken for a fault of ours.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as ConnectionLost


class _SaysSo(AbstractConnection):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise ConnectionLost("the connection was closed") from error


class _Tcp(_SaysSo, Connection): ...


class _Tls(_SaysSo, SSLConnection): ...


class _Unix(_SaysSo, UnixDomainSocketConnection): ...


class _ManagedTcp(_SaysSo, SentinelManagedConnection): ...


class _ManagedTls(_SaysSo, SentinelManagedSSLConnection): ...


OURS: Mapping[Any, type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
    SentinelManagedConnection: _ManagedTcp,
    SentinelManagedSSLConnection: _ManagedTls,
}
"""What stands for each class of redis-py's."""
