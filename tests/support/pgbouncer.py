"""Debian's PgBouncer in transaction mode, in front of a PostgreSQL of the tests."""

import os
import shutil
import subprocess
from signal import Signals
from types import TracebackType
from typing import Self

import pytest

from worker.dev import EmbeddedPostgres
from worker.dev.server import Server
from worker.dev.user import UNPRIVILEGED_USER

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer (Debian's pgbouncer) isn't installed here")

# Round robin: whatever stays behind on a server is met by somebody else in the next transaction.
CONFIG = """
[databases]
* = host={postgres}
[pgbouncer]
pool_mode = transaction
listen_port = 5432
unix_socket_dir = {own}
auth_type = trust
auth_file = {own}/users
admin_users = postgres
server_round_robin = 1
default_pool_size = {pool_size}
server_login_retry = 0.2
ignore_startup_parameters = {ignored}
max_client_conn = 500
"""


class PgBouncer:
    """Listens on a unix socket alone, and takes every database of `postgres`, as the user postgres."""

    def __init__(self, postgres: EmbeddedPostgres, pool_size: int = 20, ignored: str = "extra_float_digits") -> None:
        """pool_size: connections to the server for each database. ignored: the startup parameters that it swallows."""
        self._postgres = postgres
        self._server = Server("PgBouncer", Signals.SIGINT)
        self._pool_size, self._ignored = pool_size, ignored
        self._psql = postgres._client_bin / "psql"

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._server.directory}"

    def start(self) -> None:
        own = self._server.directory
        config = CONFIG.format(
            own=own, postgres=self._postgres._socket_dir, pool_size=self._pool_size, ignored=self._ignored
        )
        (own / "ini").write_text(config)
        (own / "users").write_text('"postgres" ""\n')
        user = UNPRIVILEGED_USER if os.geteuid() == 0 else None  # it refuses to run as root
        if user:
            shutil.chown(own, user)
        assert PROGRAM is not None
        self._server.launch([PROGRAM, str(own / "ini")], ready=self._answers, user=user)

    def stop(self) -> None:
        self._server.end()

    def close(self) -> None:
        self._server.remove()

    def clients(self, database: str) -> list[str]:
        """A line for each connection to this database that somebody holds."""
        lines = self._ask("show clients").stdout.splitlines()
        return [line for line in lines if line.split("|")[2] == database]

    def _answers(self) -> bool:
        return self._ask("show version").returncode == 0

    def _ask(self, command: str) -> "subprocess.CompletedProcess[str]":
        asking = [str(self._psql), "-XqAt", self.url("pgbouncer"), "-c", command]
        return subprocess.run(asking, capture_output=True, text=True, check=False, timeout=10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
