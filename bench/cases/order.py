"""The order job: a fresh session, SELECT … FOR UPDATE with the user, update, commit. Ours exactly once."""

from collections.abc import Sequence

from bench.case import ORDER_SLOTS, Bench, names
from bench.contenders import ARQ, BARE, LOOP, LOOP_ONCE, OURS, PGQUEUER, PROCRASTINATE, REDIS_PEERS
from bench.drive import drain
from bench.results import Block, CaseResult, Comparison, Target, best, figures, ratio

SHARE = 0.4
"""Of the bench's jobs: SQLAlchemy sets the pace. Half a second goes by until connections are made, statements prepared
and caches full, which of half as many jobs would be a fifth."""
PEERS_SHARE, SLOW_SHARE = 0.6, 0.2
"""Of those, so that each run takes about as long."""
SLOW = (*REDIS_PEERS, PROCRASTINATE)
LOOP_SLOTS = (10, 20, 40)
CLOSE = 2
"""Times as many blocks against the loop and the best peer alone: a job takes so long that the machine drifts within."""


def run(bench: Bench, result: CaseResult) -> None:
    jobs = int(bench.jobs * SHARE)
    loop = best_loop(bench, jobs)
    result.notes.append(f"The plain loop runs {loop} tasks at once, its best of {', '.join(map(str, LOOP_SLOTS))}.")
    slow = [peer.but(share=SLOW_SHARE if peer is PROCRASTINATE else PEERS_SHARE) for peer in SLOW]
    peers = bench.installed(*slow, PGQUEUER.but(variant="orders"))
    bounds = LOOP_ONCE.but(slots=loop), BARE
    sides = (OURS, LOOP.but(slots=loop), *bounds, *peers)
    measures = {side.name: bench.draining(side, "order", jobs, ORDER_SLOTS) for side in sides}
    blocks = bench.contest(OURS.name, measures)
    result.figures = figures(blocks, "order", "jobs/s")
    winner = best(result.figures, names(peers))
    near = {name: measures[name] for name in (OURS.name, LOOP.name, winner) if name}
    close = bench.contest(OURS.name, near, CLOSE * bench.rounds)

    def against(blocks: Sequence[Block], name: str, what: str, target: Target | None) -> Comparison:
        return Comparison(f"{OURS.name} ÷ {what}", ratio(blocks, OURS.name, name), target)

    result.comparisons.append(against(close, LOOP.name, LOOP.name, Target(at_least=0.9)))
    if ARQ.name in names(peers):
        result.comparisons.append(against(blocks, ARQ.name, ARQ.name, Target(at_least=1.5)))
    if winner:
        result.comparisons.append(against(close, winner, f"best peer ({winner})", Target(at_least=1.2)))
    result.comparisons += [against(blocks, bound.name, bound.name, None) for bound in bounds]
    among = f"and {winner} " if winner else ""
    result.notes.append(f"Against the loop {among}ours stands in {len(close)} blocks more, with nobody else between.")
    result.comparisons += [
        Comparison(f"{side.name} ÷ {LOOP.name}", ratio(blocks, side.name, LOOP.name)) for side in (*bounds, *peers)
    ]


def best_loop(bench: Bench, jobs: int) -> int:
    """How many tasks at once serve the plain loop best."""
    rates = {slots: drain(bench.servers, LOOP, "order", jobs, slots=slots).value or 0.0 for slots in LOOP_SLOTS}
    return max(rates, key=lambda slots: rates[slots])
