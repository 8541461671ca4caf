"""What a bench prints and writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import CaseResult, Spread

MARKS = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}


def show(console: Console, result: CaseResult) -> None:
    """One table of figures and one of ratios."""
    figures = Table("", "", "median", "least – greatest")
    for figure in result.figures:
        what = f"{figure.measure}, {figure.unit}"
        figures.add_row(what, figure.name, _number(figure.spread.median), _between(figure.spread))
    console.print(figures)
    for figure in result.figures:
        for reason in dict.fromkeys(figure.spoilt):
            console.print(f"[red]A run of {figure.name} doesn't count:[/] {escape(reason)}")
    if result.comparisons:
        ratios = Table("", "median of blocks", "least – greatest", "target", "")
        for made in result.comparisons:
            target = str(made.target) if made.target else ""
            mark = "[yellow]not measured[/]" if made.target and made.reached is None else MARKS[made.reached]
            ratios.add_row(made.what, _number(made.spread.median), _between(made.spread), target, mark)
        console.print(ratios)
    for note in result.notes:
        console.print(f"[dim]{escape(note)}[/]")


def write(path: Path, about: dict[str, Any], results: Sequence[CaseResult]) -> None:
    """As JSON: `about` (machine, versions, rounds, jobs) and each case."""
    content = {"about": about, "cases": [result.as_json() for result in results]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _between(spread: Spread) -> str:
    return f"{_number(spread.low)} – {_number(spread.high)}"
