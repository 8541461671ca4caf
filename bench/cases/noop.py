"""No-ops: what the queue itself costs."""

from bench.case import NOOP_SLOTS, Bench
from bench.contenders import ARQ, ARQ_DEFAULT, BARE, OURS, PGQUEUER, PROCRASTINATE, REDIS_PEERS
from bench.results import CaseResult, Comparison, Target, figures, ratio

TARGETS = {ARQ.name: Target(at_least=12), PGQUEUER.name: Target(at_least=2.5)}


def run(bench: Bench, result: CaseResult) -> None:
    peers = bench.installed(*REDIS_PEERS, PGQUEUER, PROCRASTINATE, ARQ_DEFAULT)
    measures = {side.name: bench.draining(side, "noop", bench.jobs, NOOP_SLOTS) for side in (OURS, BARE, *peers)}
    blocks = bench.contest(OURS.name, measures)
    result.figures = figures(blocks, "no-op", "jobs/s")
    result.comparisons = [
        Comparison(f"{OURS.name} ÷ {peer.name}", ratio(blocks, OURS.name, peer.name), TARGETS.get(peer.name))
        for peer in (BARE, *peers)
    ]
