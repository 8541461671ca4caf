"""The worker processes, each behind two lines of its own that can be broken."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.proxy import Proxy

ROOT = Path(__file__).parents[2]
CLOCK = Path(__file__).with_name("clock")
STOP_WITHIN_S = 40.0
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


@dataclass(slots=True)
class Member:
    """One `worker run`, and what follows it under the same name."""

    name: str
    processes: int
    folder: Path
    environment: Mapping[str, str]
    postgres: Proxy
    valkey: Proxy
    version: str = "old"
    surprises: list[str] = field(default_factory=list[str])
    """Ends that nobody asked for."""
    starts: int = 0
    ended: set[int] = field(default_factory=set[int])
    """Processes that were told to go, or to follow their supervisor."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whoever breaks or replaces the process has it."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, clock_shift_s: float = 0) -> None:
        """Of the version that is set. What it says is added to its log."""
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        clock = {"PYTHONPATH": str(CLOCK), "CHAOS_CLOCK_SHIFT_S": str(clock_shift_s)} if clock_shift_s else {}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", "--processes", str(self.processes)],
                cwd=ROOT,
                env={**own, **self.environment, **clock, "WORKER_APP": f"tests.chaos.app:{self.version}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    @property
    def pid(self) -> int:
        """Of the process that was started: the worker, or its supervisor."""
        assert self.process is not None
        return self.process.pid

    def working(self) -> list[int]:
        """The processes that have jobs: the one, or the supervisor's children. None where it isn't running."""
        if self.process is None:
            return []
        return [self.pid] if self.processes == 1 else _children(self.pid)

    def look(self) -> None:
        """Note it if the process has ended by itself, and start another."""
        if self.process is None or self.process.poll() is None:
            return
        self.surprises.append(f"{self.name} ended by itself with {self.process.returncode}")
        self.start()

    def kill(self) -> None:
        """SIGKILL. A supervisor's children are told to follow it by the pipe that it held."""
        self.ended |= set(self.working())
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def stop(self) -> None:
        """SIGTERM, and wait for the end; any code but 0 is a surprise."""
        self.ended |= set(self.working())
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            code = await asyncio.to_thread(process.wait, STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -signal.SIGKILL
        if code not in {0, -signal.SIGTERM}:  # told to stop before it had begun
            self.surprises.append(f"{self.name} was told to stop and ended with {code}")

    def bury(self) -> None:
        """Whatever became of the run: no process stays."""
        self.kill()
        for pid in self.ended:
            if is_worker(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def is_worker(pid: int) -> bool:
    """Whether a worker has this pid, and not by now something else."""
    with suppress(OSError):
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def resident_mb(pid: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB / 1024
