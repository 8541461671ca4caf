"""The `worker` command as a process of its own, read through its JSON log."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tests.support.namespaces import within

WORKER = str(Path(sys.executable).with_name("worker"))

LogLine = dict[str, Any]


class WorkerProcess:
    """A running `worker …` command. Every line that it writes is kept in `lines` (`text` for what is no JSON).

    Made by the fixture `start_worker`, which ends it with the test.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._grown = asyncio.Condition()
        self._ended = False
        self._reader = asyncio.create_task(self._read())
        self.lines: list[LogLine] = []

    @classmethod
    async def start(cls, *args: str, env: Mapping[str, str], host: str | None = None) -> "WorkerProcess":
        """Start `worker ARGS…` with JSON logs. Of this process's environment only PATH and HOME are passed on.

        host: a network namespace to start it in.
        """
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        full_env = {**own, "WORKER_LOG_FORMAT": "json", **env}
        # A session of its own: Ctrl-C on the test run doesn't reach it before the fixture does.
        command = within(host, WORKER) if host else [WORKER]
        process = await asyncio.create_subprocess_exec(
            *command, *args, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=STDOUT, env=full_env,
            start_new_session=True, limit=2**24,
        )  # fmt: skip
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "\n".join(line["text"] if set(line) == {"text"} else json.dumps(line) for line in self.lines)

    async def wait_for(self, event: str, *, count: int = 1, timeout: float = 20.0, **fields: object) -> LogLine:
        """Return the `count`-th log line with this event and these fields, now or when it comes.

        Fails after `timeout` seconds, or when the process ends without it; the message holds the whole log.
        """
        wanted = {"event": event, **fields}

        def matches() -> list[LogLine]:
            return [line for line in self.lines if wanted.items() <= line.items()]

        try:
            async with asyncio.timeout(timeout), self._grown:
                await self._grown.wait_for(lambda: len(matches()) >= count or self._ended)
        except TimeoutError:
            raise AssertionError(f"{wanted} didn't come within {timeout:g} s; the log:\n{self.output}") from None
        if len(matches()) < count:
            raise AssertionError(f"the worker ended without {wanted}; the log:\n{self.output}")
        return matches()[count - 1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def stop(self, timeout: float = 35.0) -> int:
        """Ask it to shut down (SIGTERM) and return its exit code; killed and a failure after `timeout` seconds."""
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
        return await self.wait(timeout)

    async def kill(self) -> None:
        """End it at once (SIGKILL)."""
        if self._process.returncode is None:
            self._process.kill()
        await self.wait()

    async def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end and return its exit code (a negative one is a signal)."""
        try:
            async with asyncio.timeout(timeout):
                await self._reader
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
            raise AssertionError(f"the worker didn't end within {timeout:g} s; the log:\n{self.output}") from None

    async def _read(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            raise TypeError("the worker's output must be a pipe")
        async for raw in stdout:
            await self._grow(_parse(raw.decode(errors="replace").rstrip("\n")))
        await self._grow(None)

    async def _grow(self, line: LogLine | None) -> None:
        """Keep a line, or note the end, and wake those who wait for it."""
        async with self._grown:
            if line is None:
                self._ended = True
            else:
                self.lines.append(line)
            self._grown.notify_all()


def _parse(text: str) -> LogLine:
    try:
        value: object = json.loads(text)
    except ValueError:
        value = None
    return cast("LogLine", value) if isinstance(value, dict) else {"text": text}
