"""The demo's two tables."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from jobs.demo.judge import JobFigures, Verdict


def jobs_table(
    figures: Sequence[JobFigures], enqueued: Counter[str], duplicates: Counter[str], seconds: float
) -> Table:
    """What was enqueued and what became of it. Jobs that others enqueued (imports, shipping) count by their runs."""
    table = Table(title=f"Jobs, {seconds:.1f} s of trade")
    for column in ("job", "enqueued", "done", "duplicate deliveries", "dead", "jobs/s", "p50 ms", "p95 ms"):
        table.add_column(column, justify="left" if column == "job" else "right")
    for job in figures:
        table.add_row(
            job.name,
            f"{enqueued.get(job.name, job.runs):,}",
            f"{job.done:,}",
            f"{duplicates[job.name]:,}",
            f"{job.dead:,}",
            "" if job.name.endswith(".import") else f"{job.done / seconds:,.0f}",
            _ms(job.p50_ms),
            _ms(job.p95_ms),
        )
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Each invariant, whether it holds, and from what figures that is told."""
    table = Table(title="Invariants")
    table.add_column("what must hold")
    table.add_column("verdict")
    table.add_column("shown by")
    for verdict in verdicts:
        table.add_row(verdict.claim, "[green]holds[/]" if verdict.holds else "[bold red]BROKEN[/]", verdict.shown)
    return table
