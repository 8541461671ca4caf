"""The demo's worker processes, and the killing of one of them."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from worker.heartbeat import live_workers
from worker.wire import IN_PROGRESS_KEY

STOP_WITHIN_S = 30


@dataclass(frozen=True, slots=True)
class Member:
    """One `worker run` process, logging JSON lines to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it has logged so far; a line cut short by a kill is left out."""
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self.process.wait(STOP_WITHIN_S)


def hire(environment: Mapping[str, str], log: Path) -> Member:
    """Start a worker."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "run"],
            env={**os.environ, **environment, "WORKER_LOG_FORMAT": "json"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Member(process, log)


async def kill_at_work(victim: Member, redis: Redis) -> set[str] | None:
    """SIGKILL the worker while it holds jobs; returns their ids. None: it holds none just now and goes on."""
    # Stopped first, so that what it holds can be read before it is gone.
    victim.process.send_signal(signal.SIGSTOP)
    held = await _held_by(victim, redis)
    if not held:
        victim.process.send_signal(signal.SIGCONT)
        return None
    victim.process.kill()
    victim.process.wait()
    return held


async def _held_by(member: Member, redis: Redis) -> set[str]:
    names = {worker.name for worker in await live_workers(redis) if worker.pid == member.process.pid}
    keys: list[bytes] = await redis.keys(f"{IN_PROGRESS_KEY}*")
    tokens: list[bytes | None] = await redis.mget(keys) if keys else []
    return {
        key.decode().removeprefix(IN_PROGRESS_KEY)
        for key, token in zip(keys, tokens, strict=True)
        if token and token.decode().partition(".")[0] in names
    }


def duplicates(crew: list[Member]) -> Counter[str]:
    """Deliveries that found their run final, by job."""
    return Counter(line["job"] for member in crew for line in member.lines() if line.get("event") == "duplicate")
