"""Enqueue → start on an idle worker, one job every 100 ms."""

from collections.abc import Callable
from statistics import quantiles

from bench.case import NOOP_SLOTS, Bench, names
from bench.contenders import ARQ_DEFAULT, BARE, OURS, OUTBOX, REDIS_PEERS, Contender
from bench.drive import SETTLE_S, new_tally, wait_for_starts, working
from bench.results import CaseResult, Comparison, Run, Target, best, figures, ratio, tails

EVERY_MS = 100
WARM_UP = 5
"""First jobs that aren't counted: both sides connect, compile and cache."""
START_TIMEOUT_S = 20.0


def run(bench: Bench, result: CaseResult) -> None:
    jobs = max(20, bench.jobs // 250)
    peers = bench.installed(*REDIS_PEERS, ARQ_DEFAULT)
    measures = {side.name: pacing(bench, side, jobs) for side in (OURS, OUTBOX, BARE, *peers)}
    p50 = bench.contest(OURS.name, measures)
    p99 = tails(p50)
    for blocks, measure in ((p50, "p50"), (p99, "p99")):
        found = figures(blocks, measure, "ms")
        result.figures += found
        if winner := best(found, names(peers), least=True):
            what = f"{measure}: {OURS.name} ÷ best peer ({winner})"
            result.comparisons.append(Comparison(what, ratio(blocks, OURS.name, winner), Target(at_most=1)))
        what = f"{measure}: {OURS.name} ÷ {BARE.name}"
        result.comparisons.append(Comparison(what, ratio(blocks, OURS.name, BARE.name)))
        what = f"{measure}: {OUTBOX.name} ÷ {OURS.name}"
        result.comparisons.append(Comparison(what, ratio(blocks, OUTBOX.name, OURS.name), Target(at_most=3)))
    result.notes.append(f"{jobs} jobs a run, so p99 is nearly the slowest of a run. Outbox: from the commit's return.")


def pacing(bench: Bench, contender: Contender, jobs: int) -> Callable[[], Run]:
    def measure() -> Run:
        bench.servers.fresh()
        path, tally = new_tally(bench.servers, 1 + WARM_UP + jobs)
        with working(bench.servers, contender, path, tally.jobs, slots=NOOP_SLOTS, job="noop") as workers:
            contender.ask(bench.servers, "fill", "noop", 1)
            if not wait_for_starts(tally, 1, workers, START_TIMEOUT_S):
                return Run(None, f"no job started; {workers[0].last_words()}")
            sent = contender.ask(bench.servers, "pace", "noop", WARM_UP + jobs, EVERY_MS)["sent"]
            if not wait_for_starts(tally, tally.jobs, workers, SETTLE_S):
                return Run(None, f"{tally.started} of {tally.jobs} jobs started")
        waits = [(started - at) * 1000 for at, started in zip(sent, tally.starts[1:], strict=True)][WARM_UP:]
        cuts = quantiles(waits, n=100, method="inclusive")
        return Run(max(0.0, cuts[49]), f"{tally.doubled} jobs started twice" if tally.doubled else "", cuts[98])

    return measure
