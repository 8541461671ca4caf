"""How commands print: tables for people, JSON for machines, one sentence for an error."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, cast

import typer
from pydantic_core import to_json
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.printable import printable

PIPED_WIDTH = 200
"""Columns, where standard output is no terminal: ids stay whole."""
FOLDED_WIDTH = 20
"""So many columns are enough for the last one, an error's text."""
SEPARATOR = " │ "
"""What stands between two columns."""


def print_json(value: Any) -> None:
    """One line of JSON. Dataclasses become objects, times ISO 8601."""
    typer.echo(to_json(value).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; a line a field on a terminal that is too narrow for it. Values are shown as they are: no markup, no
    control characters.
    """
    told = [tuple(map(shown, row)) for row in rows]
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    if console.is_terminal and _width(columns, told) > console.width:
        _print_fields(columns, told)
        return
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for row in told:
        table.add_row(*map(Text, row))
    console.print(table)


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Of a table whose values stand whole in a line, but for the last column's, which is folded."""
    *widths, last = (max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True))
    return sum(widths) + min(last, FOLDED_WIDTH) + len(SEPARATOR) * len(widths)


def _print_fields(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A block a row, of the fields that have a value. Nothing is folded here, so that an id can be copied whole."""
    width = max(map(cell_len, columns))
    for number, row in enumerate(rows):
        if number:
            typer.echo()
        for column, value in zip(columns, row, strict=True):
            if value:
                typer.echo(f"{column:{width}} {value}")


def shown(value: object) -> str:
    """`value` as text for people."""
    match value:
        case None:
            return ""
        case datetime():
            return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        case float():
            return f"{value:.1f}"
        case tuple():
            return ", ".join(map(shown, cast("tuple[object, ...]", value)))
        case dict() | list():
            return printable(to_json(value).decode())
        case _:
            return printable(str(value))
