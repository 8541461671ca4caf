"""Redis commands: a job while busy, and a second while idle."""

import time

from bench.case import NOOP_SLOTS, Bench
from bench.contenders import ARQ_DEFAULT, OURS, REDIS_PEERS, Contender
from bench.drive import SETTLE_S, new_tally, wait_for_starts, working
from bench.monitor import Commands, counting
from bench.results import CaseResult, Comparison, Figure, Spread, Target

SHARE = 0.2
IDLE_S = 4.0
MOST = 4
"""Commands that a note names."""


def run(bench: Bench, result: CaseResult) -> None:
    jobs = int(bench.jobs * SHARE)
    for side in (OURS, *bench.installed(*REDIS_PEERS, ARQ_DEFAULT)):
        watched = watching(bench, side, jobs)
        if watched is None:
            result.notes.append(f"{side.name}: not all jobs started.")
            continue
        busy, idle = watched
        sent, everything = busy.sent.total() / jobs, (busy.sent.total() + busy.inside.total()) / jobs
        a_second = idle.sent.total() / IDLE_S
        result.figures += [
            Figure(side.name, "busy: sent", "commands/job", Spread.of([sent])),
            Figure(side.name, "busy: with those inside scripts", "commands/job", Spread.of([everything])),
            Figure(side.name, "idle: sent", "commands/s", Spread.of([a_second])),
        ]
        bench.say(
            f"  {side.name}: {sent:.2f} a job ({everything:.2f} with those in scripts), idle {a_second:.1f} a second"
        )
        if side is OURS:
            result.comparisons = [
                Comparison("commands a job that our client sends", Spread.of([sent]), Target(at_most=3)),
                Comparison("commands a second of our idle worker", Spread.of([a_second]), Target(at_most=15)),
            ]
        most = ", ".join(f"{name} {number / jobs:.2f}" for name, number in busy.sent.most_common(MOST))
        result.notes.append(f"{side.name}, a job: {most}.")


def watching(bench: Bench, side: Contender, jobs: int) -> tuple[Commands, Commands] | None:
    """A worker that drains a queue, and then has nothing to do. None: it didn't drain it."""
    servers = bench.servers
    servers.fresh()
    path, tally = new_tally(servers, jobs)
    side.ask(servers, "fill", "noop", jobs)
    drained: list[bool] = []

    with working(servers, side, path, jobs, slots=NOOP_SLOTS, job="noop") as workers:

        def until_drained() -> None:
            drained.append(wait_for_starts(tally, jobs, workers))
            deadline = time.monotonic() + SETTLE_S
            while side.left(servers) and time.monotonic() < deadline:
                time.sleep(0.05)

        busy = counting(servers, until_drained)
        time.sleep(1)  # what follows the last job is neither busy nor idle
        idle = counting(servers, lambda: time.sleep(IDLE_S))
    return (busy, idle) if all(drained) else None
