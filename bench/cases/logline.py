"""What a line a job costs: logs at info, as JSON and written to a file, against warnings alone."""

from bench.case import NOOP_SLOTS, ORDER_SLOTS, Bench
from bench.contenders import OURS
from bench.results import CaseResult, Comparison, Target, figures, ratio

TALKING = OURS.but(name="ratchet, a line a job", settings={"WORKER_LOG_LEVEL": "info", "WORKER_LOG_FORMAT": "json"})


def run(bench: Bench, result: CaseResult) -> None:
    # A hundredth part is to be seen, where runs differ by ten: more blocks.
    for job, share, slots, rounds, target in (
        ("noop", 1.0, NOOP_SLOTS, bench.rounds, None),
        ("order", 0.2, ORDER_SLOTS, 3 * bench.rounds, Target(at_least=0.97)),
    ):
        jobs = int(bench.jobs * share)
        measures = {side.name: bench.draining(side, job, jobs, slots) for side in (OURS, TALKING)}
        blocks = bench.contest(OURS.name, measures, rounds)
        result.figures += figures(blocks, job, "jobs/s")
        spread = ratio(blocks, TALKING.name, OURS.name)
        result.comparisons.append(Comparison(f"{job}: {TALKING.name} ÷ {OURS.name}", spread, target))
