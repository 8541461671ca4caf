"""redis-py's connections, with four things mended.

uvloop refuses to write to a connection that has just been closed with a RuntimeError. redis-py lets it through, and it
would be taken for a fault of ours. redis-py packs commands in C for its blocking client alone: in Python the
acknowledgement of a hundred jobs took 214 us, in C 38.

And redis-py gives way to all that is ready to run, several times before it sends a command: it looks with a timeout of
zero whether the connection has something to read, and sends in a task of its own, to have a timeout for that. So a
claim left only after the jobs that it should fetch company for had run, and a worker of short jobs waited for Redis for
a fifth of its time. Here a command leaves in the turn of the loop in which it is asked for.

A primary that has become a replica says so to each command, and goes on answering: behind an address that moves to the
new primary, a connection that is open would stay with the old one for ever. redis-py closes it for sentinels alone.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as SendTimeout
from redis.typing import EncodableT

_SERIALIZER: Any = HiredisRespSerializer()  # its annotations are wrong


class _Mended(AbstractConnection):
    def pack_command(self, *args: EncodableT) -> list[bytes]:
        packed: list[bytes] = _SERIALIZER.pack(*args)
        return packed

    async def can_read_destructive(self) -> bool:
        """Whether something lies here that no command asked for. Raises redis's ConnectionError where it is closed."""
        stream: Any = self._reader
        parser: Any = self._parser
        if stream is None or stream.at_eof() or stream.exception() is not None:
            raise ConnectionLost("the server closed the connection")
        return bool(stream._buffer) or parser._reader.has_data()  # noqa: SLF001 - to read takes a turn of the loop

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As redis-py's. Raises its ConnectionError where the server is a replica."""
        read: Any = super().read_response
        try:
            return await read(*args, **options)
        except ReadOnlyError as error:
            await self.disconnect(nowait=True)
            raise ConnectionLost("the server has become a replica") from error

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """As redis-py's."""
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]  # redis-py 5 leaves it untyped
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]  # as above
        writer: Any = self._writer
        try:
            command = command.encode() if isinstance(command, str) else command
            writer.writelines([command] if isinstance(command, bytes) else command)
            _, high = writer.transport.get_write_buffer_limits()
            if writer.transport.get_write_buffer_size() > high:  # else nothing waits
                async with asyncio.timeout(self.socket_timeout):
                    await writer.drain()
        except BaseException as error:  # part of it may have been sent
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise SendTimeout("Timeout writing to socket") from None
            if isinstance(error, OSError | RuntimeError):
                raise ConnectionLost("the connection was closed") from error
            raise


class _Tcp(_Mended, Connection): ...


class _Tls(_Mended, SSLConnection): ...


class _Unix(_Mended, UnixDomainSocketConnection): ...


class _ManagedTcp(_Mended, SentinelManagedConnection): ...


class _ManagedTls(_Mended, SentinelManagedSSLConnection): ...


OURS: Mapping[Any, type[AbstractConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
    SentinelManagedConnection: _ManagedTcp,
    SentinelManagedSSLConnection: _ManagedTls,
}
"""What stands for each class of redis-py's."""
