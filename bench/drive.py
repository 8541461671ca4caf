"""Driving a contender: start its workers, watch the tally, judge the run."""

import os
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from bench.contenders import Contender
from bench.results import Run
from bench.servers import DRIVER, Servers
from bench.tally import Tally

LOOK_EVERY_S = 0.005
DRAIN_TIMEOUT_S = 45.0
SETTLE_S = 5.0
"""For the last acknowledgements and commits to arrive."""

QUEUE, PARKED = "arq:queue", "bench:parked"
PAID_ONCE = "select count(*) from bench_order where paid = 1"
PAID_TWICE = "select count(*) from bench_order where paid > 1"


@dataclass(frozen=True)
class Worker:
    """A running worker process of a contender."""

    process: subprocess.Popen[bytes]
    log: Path

    def rss_mb(self) -> float:
        """Its resident memory (MB)."""
        return self._status_mb("VmRSS")

    def peak_mb(self) -> float:
        """The most that it ever had (MB)."""
        return self._status_mb("VmHWM")

    def _status_mb(self, line_of: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(line_of))

    def last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])


@contextmanager
def working(
    servers: Servers,
    contender: Contender,
    tally: Path,
    jobs: int,
    *,
    slots: int,
    job: str,
    processes: int = 1,
) -> Generator[Sequence[Worker]]:
    """Its worker processes, killed at the end: what they leave behind is thrown away before the next run."""
    environ = contender.environ(servers, slots, {"BENCH_TALLY": str(tally), "BENCH_JOBS": str(jobs)})
    workers: list[Worker] = []
    try:
        for _ in range(processes):
            log = servers.folder / f"{uuid4().hex}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    contender.command("work", job),
                    env=environ, cwd=servers.folder, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            workers.append(Worker(process, log))
        yield workers
    finally:
        for worker in workers:
            # Each leads a session of its own, so its helpers go with it.
            if worker.process.poll() is None:
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()


def new_tally(servers: Servers, jobs: int) -> tuple[Path, Tally]:
    path = servers.folder / f"{uuid4().hex}.tally"
    return path, Tally.create(path, jobs)


def drain(
    servers: Servers,
    contender: Contender,
    job: str,
    jobs: int,
    *,
    slots: int,
    processes: int = 1,
    parked: bool = False,
) -> Run:
    """Queue all jobs, then start the workers; the rate (jobs/s) at which the jobs start.

    From the first start to the last, so an interpreter's start-up doesn't count. A run that lost, doubled or failed a
    job is spoilt. `parked`: the whole queue appears at once when all the workers are there (arq's sorted set alone).
    """
    servers.fresh()
    path, tally = new_tally(servers, jobs)
    if contender.module != "bench.loop":
        contender.ask(servers, "fill", job, jobs)
    if parked:
        servers.redis.rename(QUEUE, PARKED)
    with working(servers, contender, path, jobs, slots=slots, job=job, processes=processes) as workers:
        if parked:
            wait_for_quiet(servers)
            servers.redis.rename(PARKED, QUEUE)
        if not wait_for_starts(tally, jobs, workers):
            return Run(None, f"{tally.started:,} of {jobs:,} jobs started; {workers[0].last_words()}")
        spoilt = _judge(servers, contender, job, jobs, tally)
    return Run(rate(tally.starts), spoilt)


def wait_for_quiet(servers: Servers) -> None:
    """Until no new client has come to Redis for a second: the workers are there."""
    seen, since, deadline = 0, time.monotonic(), time.monotonic() + SETTLE_S * 2
    while time.monotonic() - since < 1 and time.monotonic() < deadline:
        clients = sum(client["name"] != DRIVER for client in servers.redis.client_list())
        if clients != seen or not clients:
            seen, since = clients, time.monotonic()
        time.sleep(LOOK_EVERY_S * 4)


def rate(starts: Sequence[float]) -> float:
    """Jobs a second: those that started before the last one, over the time from the first start to the last.

    Jobs that start together as the last ones aren't counted, since what they take isn't in the time either.
    """
    first, last = min(starts), max(starts)
    return sum(at < last for at in starts) / (last - first) if last > first else 0.0


def wait_for_starts(tally: Tally, count: int, workers: Sequence[Worker], timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Whether so many jobs have started before the time was over or a worker ended."""
    deadline = time.monotonic() + timeout_s
    while tally.started < count:
        if time.monotonic() > deadline or any(worker.process.poll() not in {None, 0} for worker in workers):
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _judge(servers: Servers, contender: Contender, job: str, jobs: int, tally: Tally) -> str:
    """Why the run doesn't count, or nothing."""
    deadline = time.monotonic() + SETTLE_S
    pays, keeps = job in {"order", "batch"}, job in {"kept", "order", "batch"}

    def missing() -> str:
        if (left := contender.left(servers)) > 0:
            return f"{left:,} jobs were not acknowledged"
        if pays and (paid := servers.value(PAID_ONCE)) != jobs:
            return f"{paid:,} of {jobs:,} orders were paid once"
        if keeps and contender.module == "bench.ours":
            done = servers.value("select count(*) from worker.run where status = 'completed'")
            return "" if done == jobs else f"{done:,} of {jobs:,} runs are completed"
        return ""

    while (fault := missing()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not fault and tally.doubled:
        fault = f"{tally.doubled:,} jobs started twice"
    if not fault and pays and (twice := servers.value(PAID_TWICE)):
        fault = f"{twice:,} orders were paid twice"
    return fault


def prepare(servers: Servers, contenders: Sequence[Contender]) -> None:
    """Let those that keep their jobs in PostgreSQL make their tables in the template."""
    for contender in contenders:
        if contender.is_installed:
            contender.ask(servers, "setup", DATABASE_URL=servers.template_url)
    servers.freeze()
