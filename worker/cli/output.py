"""How commands print: tables for people, JSON for machines, one sentence for an error."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, cast

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.printable import printable

PIPED_WIDTH = 200
"""Columns, where standard output is no terminal: ids stay whole."""


def print_json(value: Any) -> None:
    """One line of JSON. Dataclasses become objects, times ISO 8601."""
    typer.echo(to_json(value).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table. Values are shown as they are: no markup, no control characters."""
    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "id")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


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
