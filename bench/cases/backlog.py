"""A backlog of a million: the same claim rate as with ten thousand, and a worker that doesn't grow."""

from bench.backlog import fill
from bench.case import NOOP_SLOTS, Bench
from bench.contenders import OURS
from bench.drive import new_tally, rate, wait_for_starts, working
from bench.results import CaseResult, Comparison, Figure, Run, Spread, Target, figures, ratio

SHORT, LONG = 10_000, 1_000_000
WATCHED_S = 8.0
"""How long the worker with the long backlog is watched at most."""
WATCHED_JOBS = 200_000


def run(bench: Bench, result: CaseResult) -> None:
    long = LONG * bench.jobs // 10_000 if bench.jobs < 10_000 else LONG
    short = min(SHORT, bench.jobs)
    growth: list[float] = []
    sizes: list[tuple[float, float]] = []

    def with_short() -> Run:
        run, _ = claiming(bench, short, short)
        return run

    def with_long() -> Run:
        run, rss = claiming(bench, long, short)
        if rss:
            sizes.append(rss)
            growth.append(rss[1] / rss[0])
        return run

    short_name, long_name = f"{short:,} queued", f"{long:,} queued"
    blocks = bench.contest(short_name, {short_name: with_short, long_name: with_long}, min(bench.rounds, 2))
    result.figures = figures(blocks, "claims", "jobs/s")
    for which, name in enumerate(("early", "late")):
        spread = Spread.of([size[which] for size in sizes])
        result.figures.append(Figure(f"worker's memory, {name}", long_name, "MB", spread))
    result.comparisons = [
        Comparison(f"{long_name} ÷ {short_name}", ratio(blocks, long_name, short_name), Target(at_least=0.9)),
        Comparison("memory, late ÷ early", Spread.of(growth), Target(at_most=1.1)),
    ]
    result.notes.append(
        f"The rate is that of the first {short:,} jobs. Memory: the worker's RSS when these have started, and after "
        f"{WATCHED_JOBS:,} jobs or {WATCHED_S:g} s."
    )


def claiming(bench: Bench, queued: int, counted: int) -> tuple[Run, tuple[float, float] | None]:
    """The rate of the first `counted` of so many queued jobs, and the worker's memory (MB) then and later."""
    servers = bench.servers
    servers.fresh()
    fill(servers, "noop", queued)
    path, tally = new_tally(servers, queued)
    with working(servers, OURS, path, queued, slots=NOOP_SLOTS, job="noop") as workers:
        if not wait_for_starts(tally, counted, workers):
            return Run(None, f"{tally.started:,} of {counted:,} jobs started; {workers[0].last_words()}"), None
        early = workers[0].rss_mb()
        upto = min(queued, WATCHED_JOBS)
        if queued > counted:
            wait_for_starts(tally, upto, workers, WATCHED_S)
        late = workers[0].rss_mb()
    first = sorted(tally.starts)[:counted]
    return Run(rate(first), f"{tally.doubled:,} jobs started twice" if tally.doubled else ""), (early, late)
