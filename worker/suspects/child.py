"""A child of a worker, as the worker sees it: what it runs, and how it died."""

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from signal import SIGABRT, SIGKILL, Signals
from typing import IO

import structlog

from worker.delivery import Hold, Report
from worker.lease import STALL_S
from worker.shield import answer_cancellation
from worker.suspects import frames
from worker.suspects.death import Death, ProcessDeath, Suspect

LOOK_EVERY_S = 0.1
START_S = 60.0
"""For a fresh interpreter to load the application."""
LAST_WORDS_S = 3.0
"""For a child to roll back and to answer, before it is killed; less than a worker gives its jobs when it stops."""
IDLE_S = 5.0
"""How long a child waits for another suspect."""
END_S = 10.0
"""For a child that was closed, or has closed its end, to be gone."""
MAX_TRACE = 20_000
"""Bytes."""


@dataclass(slots=True)
class _Job:
    hold: Hold
    suspect: Suspect
    ended: "asyncio.Future[Report]"
    deadline: float
    """time.monotonic() after which the child hangs."""


class Child:
    """One process, from its start to its end. It ends when it is closed, idle for a while, or dead."""

    def __init__(self, command: Sequence[str], lifeline: int, grace: timedelta) -> None:
        """Start it. `lifeline`: see worker/lifeline.py. `grace`: how long a job may outlive its timeout.

        Raises OSError where the system has no room for it.
        """
        self._grace = grace
        self._jobs: dict[int, _Job] = {}
        self._numbers = count(1)
        self._given = 0
        self._is_ready = self._was_told_to_stop = self._is_hung = self.is_closed = False
        self._idle_since = self._started = self._looked = time.monotonic()
        self._log = structlog.get_logger("worker.suspects")
        self._channel, theirs = socket.socketpair()
        self._trace: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the child lives
        fds = theirs.fileno(), lifeline, self._trace.fileno()
        try:
            # A process group of its own: Ctrl-C in a terminal is for the worker.
            self._process = subprocess.Popen(
                [*command, *map(str, fds)], stdin=subprocess.DEVNULL, pass_fds=fds, process_group=0
            )
        except OSError:
            self._channel.close()
            self._trace.close()
            raise
        finally:
            theirs.close()
        self._unsent = bytearray()
        self._writer: asyncio.StreamWriter | None = None
        self.life = asyncio.create_task(self._live(), name="suspects")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_idle(self) -> bool:
        """Whether it runs nothing just now."""
        return not self._jobs

    def takes(self, suspect: Suspect) -> bool:
        """Whether there is a place for it beside those that run here."""
        if self.is_closed or self._is_hung or (suspect.company == 1 and self._given):
            return False
        return len(self._jobs) < min([suspect.company, *(job.suspect.company for job in self._jobs.values())])

    async def run(self, suspect: Suspect) -> Report:
        """Carry it out there, however often this task is cancelled. Raises ProcessDeath."""
        number, hold = next(self._numbers), suspect.delivery.hold
        self._given += 1
        ended: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._jobs[number] = _Job(hold, suspect, ended, self._in(self._grace))
        self._send(frames.start_of(number, suspect.delivery, suspect.raw))
        while not ended.done():
            try:
                await asyncio.wait({ended})
            except asyncio.CancelledError:
                aborted = hold.is_aborted()
                self._send(frames.Cancel(number, aborted))
                if hold.is_stopping() or not aborted:  # the worker stops
                    asyncio.get_running_loop().call_later(LAST_WORDS_S, self.kill)
        answer_cancellation()
        return ended.result()

    def close(self) -> None:
        """It is given nothing more, and ends when it has ended what it runs."""
        self.is_closed = True
        if self._writer is not None:
            self._writer.close()

    def kill(self) -> None:
        """End it at once."""
        self.is_closed = True
        self._process.send_signal(SIGKILL)

    def _in(self, duration: timedelta) -> float:
        return time.monotonic() + duration.total_seconds()

    def _send(self, frame: frames.Frame) -> None:
        if self._writer is None:
            self._unsent += frames.pack(frame)
        else:
            self._writer.write(frames.pack(frame))

    async def _live(self) -> None:
        hearing = asyncio.create_task(self._hear(), name="suspects")
        try:
            while self._process.poll() is None and not hearing.done():
                await asyncio.wait({hearing}, timeout=LOOK_EVERY_S)
                self._look()
            # What it said before it died is heard first; a process that it left behind may hold the other end.
            await asyncio.wait({hearing}, timeout=LAST_WORDS_S)
            await self._wait_for_exit()
        finally:
            hearing.cancel()
            (fault,) = await asyncio.gather(hearing, return_exceptions=True)
            self.kill()
            self._process.wait()
            if self._writer is not None:
                self._writer.close()
            self._bury(fault if isinstance(fault, Exception) else None)

    async def _hear(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._channel)
        self._writer.write(bytes(self._unsent))
        if self.is_closed:
            self._writer.close()
        async for frame in frames.read(reader):
            match frame:
                case frames.Ready():
                    self._is_ready = True
                    for job in self._jobs.values():
                        job.deadline = self._in(self._grace)
                case frames.Begins(number, timeout_s):
                    job, timeout = self._jobs[number], timedelta(seconds=timeout_s)
                    job.deadline = self._in(timeout + self._grace)
                    job.hold.begins(timeout + self._grace)
                case frames.AsksHeld(number):
                    self._send(frames.Held(number, await self._jobs[number].hold.is_ours()))
                case frames.Ended(number):
                    report = frames.report_of(frame, self._jobs[number].suspect.message)
                    self._jobs.pop(number).ended.set_result(report)
                    self._idle_since = time.monotonic()
                case _:
                    raise AssertionError(f"A child said {frame}.")

    def _look(self) -> None:
        """Pass on what the worker doesn't say by itself, and end what hangs."""
        now, jobs = time.monotonic(), self._jobs.values()
        stalled = now - self._looked - LOOK_EVERY_S
        self._looked = now
        if stalled > STALL_S:
            self._started += stalled
            for job in jobs:
                job.deadline += stalled
        if not self._was_told_to_stop and any(job.hold.is_stopping() for job in jobs):
            self._was_told_to_stop = True
            self._send(frames.Stop())
        if not self._is_ready:
            for job in jobs:
                job.hold.begins(self._grace)
            if now - self._started > START_S:
                self.kill()
        elif not self._is_hung and any(job.deadline < now for job in jobs):
            self._is_hung = True
            self._process.send_signal(SIGABRT)  # its faulthandler then says where it hangs
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self.kill)
        elif not jobs and not self.is_closed and now - self._idle_since > IDLE_S:
            self.close()

    async def _wait_for_exit(self) -> None:
        """It has closed its end, so it is dead or about to be."""
        deadline = time.monotonic() + END_S
        while self._process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - of a process
            await asyncio.sleep(0.01)

    def _bury(self, fault: Exception | None) -> None:
        """Tell what it died of. A `fault` of the worker's own end is none of its jobs'."""
        self.is_closed = True
        how = "hung, and was ended" if self._is_hung else _how(self._process.returncode)
        if fault is not None:
            self._log.error("suspects_not_heard", pid=self.pid, exc_info=fault)
        trace = os.pread(self._trace.fileno(), MAX_TRACE, 0).decode(errors="replace")
        self._trace.close()
        jobs, had_others = list(self._jobs.values()), self._given > 1
        self._jobs.clear()
        if jobs:
            self._log.warning("suspects_died", pid=self.pid, how=how, jobs=len(jobs))
        for job in jobs:
            death = Death(
                self.pid, how, trace, len(jobs), had_others=had_others, was_ready=self._is_ready and not fault
            )
            job.ended.set_exception(ProcessDeath(death))


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    names = {signum.value: signum.name for signum in Signals}  # real-time signals have none
    return f"was killed by {names.get(-code, -code)}"
