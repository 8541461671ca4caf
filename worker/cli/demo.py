"""worker demo: the application shows itself."""

import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from worker.cli.endings import WRONG, Refusal
from worker.cli.loading import load, load_app
from worker.dev import EmbeddedServerError
from worker.settings import Settings


def demo(
    *,
    users_csv: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Users to import: email,name. Made up unless given."),
    ] = None,
    orders_csv: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Orders to import: reference,email,placed_at,sku,quantity,amount."
        ),
    ] = None,
    orders: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many orders the producer places.")] = 1_000,
) -> None:
    """Run a shop on embedded servers: a producer, two workers, one of them killed; then count what happened.

    Ends by itself with a table. The exit code is 0 only if every invariant holds.
    """
    name = os.environ.get("WORKER_APP") or cast("str", Settings.model_fields["app"].default)
    app = load_app(name)
    if not app.demo:
        raise Refusal(f"{name} has no demo; give its App one: demo='module:function'.", WRONG)
    function: Any = load(app.demo, f"The demo of {name}")
    try:
        code: int = function(users_csv=users_csv, orders_csv=orders_csv, orders=orders)
    except EmbeddedServerError as error:
        raise Refusal(str(error)) from error
    raise typer.Exit(code)
