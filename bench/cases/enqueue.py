"""Enqueueing without a transaction: one at a time, and a hundred at a time."""

from bench.blocks import Measure
from bench.case import Bench
from bench.contenders import ARQ, OURS, PGQUEUER, REDIS_PEERS, SAQ, Contender
from bench.results import CaseResult, Comparison, Run, Target, figures, ratio

ONE_SHARE, MANY_SHARE = 0.2, 2.0
SIZE = 100
MANY = f", {SIZE} at a time"


def run(bench: Bench, result: CaseResult) -> None:
    ones = [OURS, *bench.installed(*REDIS_PEERS, PGQUEUER)]
    blocks = bench.contest(OURS.name, {side.name: one_at_a_time(bench, side) for side in ones})
    result.figures = figures(blocks, "one at a time", "jobs/s")
    result.comparisons.append(
        Comparison(f"{OURS.name} ÷ SAQ, one at a time", ratio(blocks, OURS.name, SAQ.name), Target(at_least=1.2))
    )
    many = {f"{side.name}{MANY}": at_a_time(bench, side) for side in (OURS, *bench.installed(PGQUEUER))}
    arq = {f"{side.name}, one at a time": one_at_a_time(bench, side) for side in bench.installed(ARQ)}
    ours, theirs = f"{OURS.name}{MANY}", f"{PGQUEUER.name}{MANY}"
    blocks = bench.contest(ours, many | arq)
    result.figures += figures(blocks, "many", "jobs/s")
    for name in arq:
        result.comparisons.append(Comparison(f"{ours} ÷ {name}", ratio(blocks, ours, name), Target(at_least=10)))
    if theirs in many:
        result.comparisons.append(Comparison(f"{ours} ÷ {theirs}", ratio(blocks, ours, theirs), Target(at_least=0.5)))


def one_at_a_time(bench: Bench, side: Contender) -> Measure:
    return enqueueing(bench, side, "each", int(bench.jobs * ONE_SHARE))


def at_a_time(bench: Bench, side: Contender) -> Measure:
    return enqueueing(bench, side, "bulk", int(bench.jobs * MANY_SHARE), SIZE)


def enqueueing(bench: Bench, side: Contender, command: str, jobs: int, *sizes: int) -> Measure:
    """How many jobs a second one client enqueues, by its own clock, with nobody at work."""

    def measure() -> Run:
        bench.servers.fresh()
        return Run(jobs / side.ask(bench.servers, command, "noop", jobs, *sizes)["seconds"])

    return measure
