"""What a bench prints and writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.results import CaseResult, Spread

MARKS = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}


def show(console: Console, result: CaseResult) -> None:
    """One table of figures and one of ratios."""
    if result.skipped:
        console.print(f"[yellow]skipped: {result.skipped}[/]")
        return
    figures = Table("what", "who", "median", "least – greatest", "unit", "runs that don't count")
    for figure in result.figures:
        who, spread = figure.name, figure.spread
        spoilt = "; ".join(dict.fromkeys(figure.spoilt))
        figures.add_row(figure.measure, who, _number(spread.median), _between(spread), figure.unit, spoilt)
    console.print(figures)
    if result.comparisons:
        ratios = Table("ratio", "median of the blocks", "least – greatest", "target", "")
        for made in result.comparisons:
            target = str(made.target) if made.target else ""
            mark = "[yellow]not measured[/]" if made.target and made.reached is None else MARKS[made.reached]
            ratios.add_row(made.what, _number(made.spread.median), _between(made.spread), target, mark)
        console.print(ratios)
    for note in result.notes:
        console.print(f"[dim]{note}[/]")


def write(path: Path, about: dict[str, Any], results: Sequence[CaseResult]) -> None:
    """As JSON: `about` (machine, versions, rounds, jobs) and each case."""
    content = {"about": about, "cases": [result.as_json() for result in results]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _between(spread: Spread) -> str:
    return f"{_number(spread.low)} – {_number(spread.high)}"
