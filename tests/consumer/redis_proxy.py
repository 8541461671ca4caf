"""A TCP proxy in front of Redis: it holds a chosen command back, or goes away, while Redis keeps its data."""

import asyncio
import hashlib
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


def sha_of(script: str) -> bytes:
    """What EVALSHA calls it."""
    return hashlib.sha1(script.encode()).hexdigest().encode()  # noqa: S324 - Redis's own choice


class RedisProxy:
    """Give workers its `url`, and everybody else Redis's own."""

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        self._target = (parts.hostname, parts.port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._held_back = b""
        self._unanswered = b""
        self.holds = asyncio.Event()
        """Set as soon as a command, or the answer to one, was held back."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def hold_back(self, needle: bytes) -> None:
        """Let no command through that contains `needle`, nor what follows it on its connection."""
        self.holds.clear()
        self._held_back = needle

    def lose_answer_to(self, needle: bytes) -> None:
        """Let the first command through that contains `needle`, and end its connection instead of answering."""
        self.holds.clear()
        self._unanswered = needle

    async def away(self) -> None:
        """End all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def back(self) -> None:
        """Listen, on the same port as before. Nothing is held back."""
        self._held_back = b""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.away()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipe = asyncio.create_task(self._connect(reader, writer))
        self._pipes.add(pipe)
        pipe.add_done_callback(self._pipes.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_writer = None
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up_writer, watched=True))
                group.create_task(self._pump(up_reader, writer, watched=False))
        except* (OSError, _Ended):
            pass
        finally:
            for side in filter(None, (writer, up_writer)):
                side.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool) -> None:
        while data := await reader.read(2**16):
            if watched and self._held_back and self._held_back in data:
                self.holds.set()
                await asyncio.Event().wait()
            if watched and self._unanswered and self._unanswered in data:
                await self._lose_answer(data)
            writer.write(data)
            with suppress(ConnectionError):
                await writer.drain()
        raise _Ended

    async def _lose_answer(self, command: bytes) -> None:
        """Send it on a connection of its own; the answer to a first EVALSHA may say that the script isn't loaded."""
        reader, writer = await asyncio.open_connection(*self._target)
        writer.write(command)
        answer = await reader.read(2**16)
        writer.transport.abort()
        if not answer.startswith(b"-NOSCRIPT"):
            self._unanswered = b""
            self.holds.set()
            raise _Ended


class _Ended(Exception):
    """One side hung up; the other one is ended with it."""
