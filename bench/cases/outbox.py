"""Jobs that leave with a transaction: how fast they are written, and how fast one relay carries them to Redis."""

import time

from bench.case import NOOP_SLOTS, Bench
from bench.cases.enqueue import enqueueing
from bench.contenders import OUTBOX
from bench.drive import DRAIN_TIMEOUT_S, LOOK_EVERY_S, QUEUE, new_tally, working
from bench.results import CaseResult, Comparison, Run, Target, figures

SHARE = 2.0
SIZE = 100
WRITTEN, RELAYED = f"enqueued, {SIZE} a transaction", "relayed"
TARGET = Target(at_least=10_000)

RELAY_ONLY = OUTBOX.but(settings={"WORKER_QUEUES": "bench:nothing"})
"""A worker that serves another queue: of these jobs it is the relay alone."""


def run(bench: Bench, result: CaseResult) -> None:
    jobs = int(bench.jobs * SHARE)
    measures = {WRITTEN: enqueueing(bench, OUTBOX, "bulk", jobs, SIZE), RELAYED: lambda: relaying(bench, jobs)}
    blocks = bench.contest(WRITTEN, measures)
    result.figures = figures(blocks, "outbox", "jobs/s")
    result.comparisons = [Comparison(figure.name, figure.spread, TARGET) for figure in result.figures]


def relaying(bench: Bench, jobs: int) -> Run:
    """From the first job in Redis to the last."""
    servers = bench.servers
    servers.fresh()
    OUTBOX.ask(servers, "fill", "noop", jobs)
    path, _ = new_tally(servers, jobs)
    seen: list[tuple[float, int]] = []
    with working(servers, RELAY_ONLY, path, jobs, slots=NOOP_SLOTS, job="noop") as workers:
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while not seen or seen[-1][1] < jobs:
            if time.monotonic() > deadline:
                return Run(None, f"{seen[-1][1] if seen else 0:,} of {jobs:,} jobs relayed; {workers[0].last_words()}")
            arrived = servers.redis.zcard(QUEUE)
            if arrived and (not seen or arrived > seen[-1][1]):
                seen.append((time.monotonic(), arrived))
            time.sleep(LOOK_EVERY_S / 2)
        sent = servers.value("select count(*) from worker.outbox where sent_epoch is not null")
    if len(seen) < 2:
        return Run(None, "all jobs came at once: too few to measure")
    (first_at, first), (last_at, last) = seen[0], seen[-1]
    return Run((last - first) / (last_at - first_at), "" if sent == jobs else f"{sent:,} of {jobs:,} rows are marked")
