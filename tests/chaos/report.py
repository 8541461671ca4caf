"""What a run shows: tables for people, JSON for machines."""

import json
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from tests.chaos.run import Report


def as_json(report: Report) -> str:
    """One object. `told.events` counts the log's lines by event."""
    fields: dict[str, Any] = TypeAdapter(Report).dump_python(report, mode="json")
    return json.dumps({"holds": report.holds, **fields}, indent=2)


def show(console: Console, report: Report) -> None:
    console.print(_faults(report))
    console.print(_figures(report))
    console.print(_verdicts(report))


def _faults(report: Report) -> Table:
    table = Table(title="Faults")
    table.add_column("kind")
    table.add_column("times", justify="right")
    for kind, times in report.faults.items():
        table.add_row(kind, f"{times:,}")
    table.add_row("all", f"{sum(report.faults.values()):,}", style="bold")
    return table


def _figures(report: Report) -> Table:
    events = report.told.events
    figures = {
        "orders placed": f"{sum(report.enqueued[how] for how in ('transaction', 'sql', 'direct', 'twice')):,}",
        "transactions rolled back": f"{report.enqueued['rolled back']:,}",
        "transactions broken off": f"{report.enqueued['not known']:,}",
        "jobs applied": f"{report.effects:,}",
        "jobs a second": f"{report.effects / report.seconds:,.0f}",
        "attempts beyond a job's first": f"{report.told.redelivered:,}",
        "duplicates caught": f"{events['duplicate']:,}",
        "leases lost": f"{events['lease_lost'] + events['lease_was_lost']:,}",
        "zombies' transactions ended": f"{events['zombie_ended']:,}",
        "direct jobs lost with Redis": f"{report.lost_direct:,}",
        "slowest takeover": _seconds(report.slowest_takeover_s, report.takeovers),
        "slowest refill of Redis": _seconds(report.slowest_refill_s, report.refills),
        "blocks of memory in the long-lived worker": f"{report.before.blocks:,} and {report.after.blocks:,}",
        "its resident memory": f"{report.before.resident_mb:.0f} and {report.after.resident_mb:.0f} MiB",
        "the same by tenths of the way": " ".join(f"{part:.0f}" for part in report.on_the_way_mb),
        "its connections to PostgreSQL": f"{report.before.postgres} and {report.after.postgres}",
        "its connections to Valkey": f"{report.before.valkey} and {report.after.valkey}",
    }
    table = Table(title=f"{report.seconds:,.0f} s")
    table.add_column("figure")
    table.add_column("", justify="right")
    for figure, value in figures.items():
        table.add_row(figure, value)
    return table


def _verdicts(report: Report) -> Table:
    table = Table(title="Verdict")
    table.add_column("")
    table.add_column("claim")
    table.add_column("shown")
    for verdict in report.verdicts:
        table.add_row("[green]✓[/]" if verdict.holds else "[bold red]✗[/]", verdict.claim, verdict.shown)
    return table


def _seconds(value: float | None, measured: int) -> str:
    return f"{value:.1f} s of {measured}" if value is not None else "not measured"
