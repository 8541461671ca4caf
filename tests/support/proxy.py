"""A line to a server that can be cut, held up or slowed down, while the server itself stays as it is."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Address: TypeAlias = Path | tuple[str, int]
"""A unix socket, or a host and its port."""

COMMIT_SENT = b"COMMIT;\x00"
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""PostgreSQL's: how a client asks for a commit, and how it is told of one."""
UNKNOWN_SCRIPT = b"-NOSCRIPT"
"""Redis's: the command did nothing, and comes again with the script."""


class Proxy:
    """Forwards bytes between its own address and a server's. Lines may be cut while they are up."""

    def __init__(self, server: Address, own: Address) -> None:
        """`own`: port 0 stands for any that is free; it is kept over `stop` and `start`."""
        self._target = server
        self.address = own
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self._states: set[_Line] = set()
        self.cut_before: bytes | None = None
        """Cut a line when the client sends this; the server doesn't get it."""
        self.cut_after: bytes | None = None
        """Cut a line when the server answers with this; the client doesn't get it."""
        self.cuts = 0
        self.delay_s = 0.0
        """Each piece waits for so long, in both directions."""
        self._held_back = self._unanswered = b""
        self.holds = asyncio.Event()
        """Set as soon as a command, or the answer to one, was held back."""
        self._passes = asyncio.Event()
        self._passes.set()

    @property
    def lines(self) -> int:
        """How many connections are up."""
        return len(self._lines)

    async def start(self) -> None:
        """Listen. Nothing is held back."""
        self._held_back = b""
        if isinstance(self.address, Path):
            self._server = await asyncio.start_unix_server(self._accept, self.address)
        else:
            host, port = self.address
            self._server = await asyncio.start_server(self._accept, host, port)
            self.address = host, self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Take no more connections, and end those that are up. The server is away, as seen from here."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)
        self.hang_up()
        await asyncio.gather(*self._lines, return_exceptions=True)

    def hang_up(self) -> None:
        """End the connections that are up."""
        for line in self._lines:
            line.cancel()

    def swallow(self) -> None:
        """Let nothing through, and end nothing either, until `release`."""
        self._passes.clear()

    def release(self) -> None:
        """Let everything through again, what was swallowed first."""
        self._passes.set()

    def deafen(self) -> None:
        """Let nothing more through on the connections that are up, and end none of them; new ones are as ever."""
        for line in self._states:
            line.hears.clear()

    def hold_back(self, needle: bytes) -> None:
        """Let no command through that contains `needle`, nor what follows it on its connection."""
        self.holds.clear()
        self._held_back = needle

    def lose_answer_to(self, needle: bytes) -> None:
        """Let the first command through that contains `needle`, and end its connection instead of answering."""
        self.holds.clear()
        self._unanswered = needle

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # stopped since it came
            writer.transport.abort()
            return
        line = asyncio.create_task(self._connect(reader, writer))
        self._lines.add(line)

        def ended(line: asyncio.Task[None]) -> None:
            self._lines.discard(line)
            writer.transport.abort()  # here, since a line that is hung up at once never gets to its `finally`

        line.add_done_callback(ended)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_writer: asyncio.StreamWriter | None = None
        line = _Line()
        self._states.add(line)
        try:
            if isinstance(self._target, Path):
                up_reader, up_writer = await asyncio.open_unix_connection(self._target)
            else:
                up_reader, up_writer = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(line, reader, up_writer))
                group.create_task(self._answer(line, up_reader, writer))
        except* (OSError, _Ended):
            pass
        finally:
            self._states.discard(line)
            if up_writer is not None:
                up_writer.transport.abort()

    async def _send(self, line: "_Line", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            if self.cut_before is not None and self.cut_before in data:
                self._cut()
            if self._held_back and self._held_back in data:
                self.holds.set()
                await asyncio.Event().wait()
            line.goes_unanswered |= bool(self._unanswered) and self._unanswered in data
            await self._forward(line, data, writer)
        raise _Ended

    async def _answer(self, line: "_Line", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            if self.cut_after is not None and self.cut_after in data:
                self._cut()
            if line.goes_unanswered and not data.startswith(UNKNOWN_SCRIPT):
                self._unanswered = b""
                self.holds.set()
                raise _Ended
            line.goes_unanswered = False
            await self._forward(line, data, writer)
        raise _Ended

    def _cut(self) -> None:
        self.cuts += 1
        self.cut_before = self.cut_after = None
        raise _Ended

    async def _forward(self, line: "_Line", data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._passes.wait()
        await line.hears.wait()
        if writer.is_closing():  # uvloop refuses to write then
            raise _Ended
        writer.write(data)
        with suppress(ConnectionError):
            await writer.drain()


class _Line:
    def __init__(self) -> None:
        self.goes_unanswered = False
        """The answer to its last command is to be lost."""
        self.hears = asyncio.Event()
        self.hears.set()


class _Ended(Exception):
    """One side hung up, or is to think so; the other one is ended with it."""
