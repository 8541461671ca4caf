"""Supervisor: keeps N processes of `worker run`, and leaves none behind. `worker run --processes N` becomes this.

It loads nothing of what a worker needs, so it stays small. Its children are fresh interpreters, never forks.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from signal import SIGCHLD, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Literal, NamedTuple, NoReturn

import structlog

from worker.reporting.logs import configure
from worker.retry import RetryPolicy

BACKOFF = RetryPolicy(base=timedelta(milliseconds=100), factor=2, cap=timedelta(seconds=30))
BRIEF_S = 1.0
"""A process that ends sooner has done nothing, with whichever code, and is started again after a while."""
STEADY_S = 60.0
"""A process that lived so long had nothing wrong at its start: its backoff is forgotten."""
KILL_AFTER_S = 15.0
"""Beyond the grace: for a worker to roll back, hand back and say goodbye."""
ADDED = 200
"""By a worker that has a supervisor to the exit codes 0, 2 and 3: a job that ends its process may do so with any."""
IN_ORDER = ADDED
"""The exit code of a worker that has ended as it should."""
REFUSALS = (ADDED + 2, ADDED + 3)
"""Exit codes that no restart mends: wrong settings, or a server that refuses us (worker/cli/endings.py)."""
FAILED = 1
"""As any command that failed (worker/cli/endings.py)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a supervisor has to know. Made from the settings, which it couldn't load and stay small."""

    command: list[str]
    """Starts one worker. The lifeline is added to it (worker/lifeline.py), then `arguments`."""
    processes: int
    grace_s: float
    arguments: Sequence[str] = ()
    burst: bool = False
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_payloads: bool = False


def become_supervisor(plan: Plan) -> NoReturn:
    """Replace this process, with all that it has loaded, by a supervisor. Its pid stays."""
    # -P: a module of the current folder that is called like ours must not be taken for it.
    command = [sys.executable, "-P", "-m", "worker.supervisor", json.dumps(asdict(plan))]
    os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted


class Life(NamedTuple):
    """Of a process that was started."""

    began: float
    """By time.monotonic()."""
    ended: asyncio.Future[int]
    """Its return code."""


class Supervisor:
    """The processes of one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lifeline = -1
        self._living: dict[subprocess.Popen[bytes], Life] = {}
        self._stopping = asyncio.Event()
        self._refusal = 0
        self._log = structlog.get_logger("worker.supervisor")

    async def run(self) -> int:
        """Keep the processes until SIGTERM or SIGINT; in burst mode, until all have ended. Returns the exit code.

        That is 0 where all ended in order, else the worst of theirs (128 + n for signal n).
        """
        loop = asyncio.get_running_loop()
        # Only this process holds the pipe's other end: it is closed when this ends, however it ends.
        self._lifeline, held = os.pipe()
        loop.add_signal_handler(SIGCHLD, self._reap)
        for signum in (SIGTERM, SIGINT):
            loop.add_signal_handler(signum, self._told, signum)
        try:
            codes = await asyncio.gather(*(self._keep_one() for _ in range(self._plan.processes)))
        finally:
            os.close(held)
            os.close(self._lifeline)
            for signum in (SIGCHLD, SIGTERM, SIGINT):
                loop.remove_signal_handler(signum)
        return self._refusal or max(codes)

    async def _keep_one(self) -> int:
        """Start a process, and another whenever it ends. Returns the exit code of the last one."""
        deaths = 0
        while True:
            started = time.monotonic()
            pid, code = await self._live()
            if self._stopping.is_set() or self._plan.burst:
                return _exit_code(code)
            is_steady = time.monotonic() - started >= STEADY_S
            # Nobody here asked it to end: it recycles itself (worker/recycling.py).
            if code == IN_ORDER and time.monotonic() - started >= BRIEF_S:
                self._log.info("process_recycled", pid=pid)
                continue
            if code in REFUSALS and not is_steady and not self._is_another_steady():
                self._log.error("process_refused", pid=pid, code=code - ADDED, hint="no restart mends that; all end")
                self._refusal = code - ADDED
                self._stop(SIGTERM)
                return self._refusal
            deaths = 1 if is_steady else deaths + 1
            delay_s = BACKOFF.delay(deaths).total_seconds()
            self._log.warning("process_died", pid=pid, **_how(code), restart_in_s=round(delay_s, 3))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
                return 0

    def _is_another_steady(self) -> bool:
        """Then the settings are right, and whatever refuses one process may let it in later."""
        return any(time.monotonic() - life.began >= STEADY_S for life in self._living.values())

    async def _live(self) -> tuple[int | None, int]:
        """One process from its start to its end. Returns its pid and return code (a negative one is a signal)."""
        command = [*self._plan.command, "--lifeline", str(self._lifeline), *self._plan.arguments]
        try:
            # A process group of its own: Ctrl-C in a terminal reaches it through us alone.
            process = subprocess.Popen(  # noqa: ASYNC220 - it returns when the interpreter is loaded
                command, stdin=subprocess.DEVNULL, pass_fds=[self._lifeline], process_group=0
            )
        except OSError as error:
            self._log.error("process_not_started", reason=str(error), hint="trying again")
            return None, os.EX_OSERR
        self._log.info("process_started", pid=process.pid)
        self._living[process] = life = Life(time.monotonic(), asyncio.get_running_loop().create_future())
        return process.pid, await life.ended

    def _reap(self) -> None:
        for process, life in list(self._living.items()):
            if process.poll() is not None:
                del self._living[process]
                life.ended.set_result(process.returncode)

    def _told(self, signum: Signals) -> None:
        if self._stopping.is_set() and signum != SIGINT:
            return
        self._log.warning("supervisor_stopping", signal=signum.name, running=len(self._living))
        self._stop(signum)

    def _stop(self, signum: Signals) -> None:
        """Ask for an orderly stop. What comes after that is passed on: it cuts the grace short."""
        cut = self._stopping.is_set()
        self._stopping.set()
        for process in self._living:
            process.send_signal(signum if cut else SIGTERM)
        patience_s = KILL_AFTER_S + (0 if cut else self._plan.grace_s)
        asyncio.get_running_loop().call_later(patience_s, self._kill)

    def _kill(self) -> None:
        for process in self._living:
            self._log.error("process_killed", pid=process.pid, hint="it outlived its grace")
            process.send_signal(SIGKILL)


def _exit_code(code: int) -> int:
    if code in {IN_ORDER, -SIGTERM, -SIGINT}:  # the latter: told to stop before it had begun to work
        return 0
    if code == 0:  # a job's word, not its worker's
        return FAILED
    if code in REFUSALS:
        return code - ADDED
    return code if code >= 0 else 128 - code


def _how(code: int) -> dict[str, object]:
    if code >= 0:
        return {"code": code}
    names = {signum.value: signum.name for signum in Signals}  # real-time signals have none
    return {"signal": names.get(-code, -code)}


if __name__ == "__main__":
    given = Plan(**json.loads(sys.argv[1]))
    configure(given)
    sys.exit(asyncio.run(Supervisor(given).run()))
