"""No-ops that the ledger remembers: what "exactly once" costs against a loop that does nothing but write the run."""

from bench.case import ORDER_SLOTS, Bench
from bench.contenders import BARE, LOOP, OURS, OUTBOX
from bench.results import CaseResult, Comparison, Target, figures, ratio

SHARE = 0.4


def run(bench: Bench, result: CaseResult) -> None:
    jobs = int(bench.jobs * SHARE)
    sides = (LOOP, OURS, OUTBOX, BARE)
    blocks = bench.contest(LOOP.name, {side.name: bench.draining(side, "kept", jobs, ORDER_SLOTS) for side in sides})
    result.figures = figures(blocks, "no-op, kept", "jobs/s")
    result.comparisons = [
        Comparison(f"{OURS.name} ÷ {LOOP.name}", ratio(blocks, OURS.name, LOOP.name), Target(at_least=0.9)),
        Comparison(f"{OUTBOX.name} ÷ {LOOP.name}", ratio(blocks, OUTBOX.name, LOOP.name)),
        Comparison(f"{BARE.name} ÷ {LOOP.name}", ratio(blocks, BARE.name, LOOP.name)),
    ]
    result.notes.append(
        "From the outbox, the same worker also relays each job to Redis meanwhile, and takes its row away."
    )
