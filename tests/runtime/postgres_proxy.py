"""A line to PostgreSQL that can be cut: before a statement arrives, or before its answer does."""

import asyncio
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SOCKET = ".s.PGSQL.5432"
COMMIT_SENT = b"COMMIT;\x00"
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"


class PostgresProxy:
    """Forwards bytes between its own unix socket and the server's. Lines may be cut while they are up."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        self._server_path = str(Path(parse_qs(parts.query)["host"][0]) / SOCKET)
        self._path = directory / SOCKET
        self.url = f"postgresql://postgres@{parts.path}?host={directory}"
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self.cut_before: bytes | None = None
        """Cut a line when the client sends this; the server doesn't get it."""
        self.cut_after: bytes | None = None
        """Cut a line when the server answers with this; the client doesn't get it."""
        self.cuts = 0

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def stop(self) -> None:
        """Take no more connections, and end those that are up. The server is away, as seen from here."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)
        self.hang_up()
        await asyncio.gather(*self._lines, return_exceptions=True)

    def hang_up(self) -> None:
        """End the connections that are up."""
        for line in self._lines:
            line.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server_path)
            directions = (
                asyncio.create_task(self._forward(reader, to_server, sent=True)),
                asyncio.create_task(self._forward(from_server, writer, sent=False)),
            )
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
                writer.transport.abort()
                to_server.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._lines.discard(line)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, sent: bool) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65536):
                stop = self.cut_before if sent else self.cut_after
                if stop is not None and stop in chunk:
                    self.cuts += 1
                    self.cut_before = self.cut_after = None
                    return
                writer.write(chunk)
                await writer.drain()
