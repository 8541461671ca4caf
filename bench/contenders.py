"""The contenders: how each is started, and how to see that nothing of its queue is left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.servers import Servers

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".bench" / "peers"
"""Made by `make bench`, one for each peer."""
COMMAND_TIMEOUT_S = 120


class ContenderError(Exception):
    """A contender's process failed; the text has the end of what it said."""


@dataclass(frozen=True)
class Contender:
    """One way to run jobs."""

    name: str
    module: str
    left: Callable[[Servers], int]
    """Jobs that are queued, running or not acknowledged yet."""
    variant: str = ""
    share: float = 1.0
    """Of the case's jobs: a slow one gets fewer, so that each run takes about as long."""
    least: int = 20
    """Jobs that it gets at least."""
    environment: str = ""
    """The name of its environment; empty: that of this process."""
    slots: int | None = None
    """Where it isn't the case's."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """More for the environment of its worker."""

    @property
    def python(self) -> str:
        return str(ENVIRONMENTS / self.environment / "bin" / "python") if self.environment else sys.executable

    @property
    def is_installed(self) -> bool:
        return Path(self.python).exists()

    def but(self, **changes: Any) -> "Contender":
        """This one with another variant, share or the like."""
        return replace(self, **changes)

    def jobs(self, jobs: int) -> int:
        """Its part of a case's jobs."""
        return max(self.least, int(jobs * self.share))

    def command(self, *arguments: str) -> list[str]:
        return [self.python, "-P", "-m", self.module, *arguments]

    def environ(self, servers: Servers, slots: int, more: Mapping[str, str]) -> dict[str, str]:
        """What its processes are given. Nothing of this process's environment but PATH and HOME is passed on."""
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        given = {
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "BENCH_SLOTS": str(self.slots or slots),
            "BENCH_VARIANT": self.variant,
        }
        return {**own, **given, **self.settings, **more}

    def ask(self, servers: Servers, *arguments: object, **more: str) -> dict[str, Any]:
        """Run one of the commands of `bench/inside.py` and return its answer. Raises ContenderError."""
        done = subprocess.run(
            self.command(*map(str, arguments)),
            env=self.environ(servers, 10, more),
            cwd=servers.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        if done.returncode != 0:
            said = " | ".join(done.stderr.strip().splitlines()[-4:])
            raise ContenderError(f"{self.name}: {' '.join(map(str, arguments))} failed: {said}")
        lines = done.stdout.strip().splitlines()
        answer: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return answer


def _streams(servers: Servers) -> int:
    """What taskiq's stream holds of unread and unacknowledged messages."""
    (group,) = servers.redis.xinfo_groups("taskiq")
    return int(group["pending"]) + int(group["lag"] or 0)


def _arq_queue(servers: Servers) -> int:
    return int(servers.redis.zcard("arq:queue"))


def _outbox(servers: Servers) -> int:
    return int(servers.value("select count(*) from worker.outbox")) + _arq_queue(servers)


OURS = Contender("ratchet", "bench.ours", _arq_queue)
OUTBOX = OURS.but(name="ratchet, outbox", variant="outbox", left=_outbox)
LOOP = Contender("plain loop", "bench.loop", lambda servers: 0)  # noqa: ARG005 - it has no queue

LOOP_ONCE = LOOP.but(name="plain loop that writes the run", variant="run")
BARE = OURS.but(name="bare engine", module="bench.bare")
"""What is left when an engine keeps none of our promises: a bound, not a rival. So is the loop that writes the run."""

ARQ = Contender("arq, tuned", "bench.peers.arq.peer", _arq_queue, variant="tuned", share=0.4, environment="arq")
ARQ_DEFAULT = ARQ.but(name="arq", variant="", share=0.06, least=600)
SAQ = Contender(
    "SAQ", "bench.peers.saq.peer", lambda servers: servers.redis.zcard("saq:default:incomplete"), share=0.4,
    environment="saq",
)  # fmt: skip
TASKIQ = Contender("taskiq", "bench.peers.taskiq.peer", _streams, share=0.6, environment="taskiq")
STREAQ = Contender(
    "streaq", "bench.peers.streaq.peer", lambda servers: servers.redis.xlen("streaq:default:queues:normal"), share=0.2,
    environment="streaq",
)  # fmt: skip
PGQUEUER = Contender(
    "PgQueuer", "bench.peers.pgqueuer.peer", lambda servers: servers.value("select count(*) from pgqueuer"),
    environment="pgqueuer",
)  # fmt: skip
PROCRASTINATE = Contender(
    "procrastinate",
    "bench.peers.procrastinate.peer",
    lambda servers: servers.value("select count(*) from procrastinate_jobs where status in ('todo', 'doing')"),
    share=0.06,
    environment="procrastinate",
)

REDIS_PEERS = (ARQ, SAQ, TASKIQ, STREAQ)
POSTGRES_PEERS = (PGQUEUER, PROCRASTINATE)
