"""Two processes on two cores, against one."""

from functools import partial

from bench.case import NOOP_SLOTS, ORDER_SLOTS, Bench
from bench.contenders import ARQ, OURS
from bench.drive import drain
from bench.results import CaseResult, Comparison, Target, figures, ratio

MOST_ROUNDS = 2
NOOP_SHARE, ARQ_SHARE, ORDER_SHARE = 4.0, 0.4, 0.2


def run(bench: Bench, result: CaseResult) -> None:
    contests = (
        (OURS, "noop", NOOP_SHARE, NOOP_SLOTS, Target(at_least=1.4)),
        *((arq, "noop", ARQ_SHARE, NOOP_SLOTS, None) for arq in bench.installed(ARQ)),
        (OURS, "order", ORDER_SHARE, ORDER_SLOTS, None),
    )
    for side, job, share, slots, target in contests:
        jobs, one, two = int(bench.jobs * share), f"{side.name}, one process", f"{side.name}, two processes"
        drained = partial(drain, bench.servers, side, job, jobs, slots=slots, parked=True)
        measures = {one: partial(drained, processes=1), two: partial(drained, processes=2)}
        blocks = bench.contest(one, measures, min(bench.rounds, MOST_ROUNDS))
        result.figures += figures(blocks, job, "jobs/s")
        result.comparisons.append(Comparison(f"{job}: {two} ÷ one", ratio(blocks, two, one), target))
    result.notes.append("The queue appears at once when all processes are there. Both servers run on the same cores.")
