"""One embedded server: a child of this process with a temporary directory of its own.

A small shell keeps watch over it: when this process ends, however it ends, the server is stopped and the directory
removed.
"""

import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.dev.user import group_of

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0

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


class Server:
    """One server process, its temporary directory and its watch."""

    def __init__(self, name: str, stop_signal: signal.Signals, within: Path | None = None) -> None:
        """`within`: where its directory is made; None: where the system has temporary ones."""
        self._name = name
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        # Short, since the path of a unix socket in it may have at most 103 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix=f"ratchet-{name.lower()}-", dir=within))
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
        self.log_path.touch(mode=0o600)  # it quotes statements that failed
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the worker, which still needs its servers while it stops
                user=user,
                group=group_of(user),
                extra_groups=None if user is None else (),
            )
        self._watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "sh", self._stop_signal.name[3:], str(self.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
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
            self._process.wait(STOP_TIMEOUT_S)
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


class Embedded(ABC):
    """What both servers have in common: a process that starts, stops, and closes itself as a context manager."""

    _server: Server

    @abstractmethod
    def start(self) -> None:
        """Return when it takes connections. Raises EmbeddedServerError where it doesn't."""

    @property
    def pid(self) -> int:
        return self._server.pid

    def is_running(self) -> bool:
        return self._server.is_running()

    @property
    def log_path(self) -> Path:
        return self._server.log_path

    def stop(self) -> None:
        """Shut down in order; clients are thrown out."""
        self._server.end()

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


def package_dir(name: str) -> Path:
    """Find an installed package without importing it: only its binaries are used."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(f"The embedded servers need the package {name}; install it.")
    return Path(spec.submodule_search_locations[0])


def free_port() -> int:
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
