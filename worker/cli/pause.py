"""worker pause and resume: hold a queue or a job name back, and let it go on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.cli.endings import WRONG, Refusal
from worker.cli.loading import load_app
from worker.cli.reach import database
from worker.job import QUEUE
from worker.pauses import Kind
from worker.pauses import pause as pause_it
from worker.pauses import resume as resume_it
from worker.printable import printable
from worker.settings import Settings, load_settings

Queues = Annotated[list[str] | None, typer.Option("--queue", help="A queue; give it again for more.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="A job's name; give it again for more.")]
Change = Callable[[AsyncEngine, Kind, str], Awaitable[bool]]

UNREAD = " No job of WORKER_APP goes there by itself, and WORKER_QUEUES doesn't have it: check its name."


def pause(queue: Queues = None, name: Names = None) -> None:
    """Start no more jobs of a queue, or of a name, until it is resumed.

    Jobs that run go on; new ones wait. It holds for all workers, until worker resume, also where Redis is emptied.
    """
    settings, chosen = load_settings(), _chosen(queue, name)
    app = load_app(settings.app)
    read = {*settings.queues, *app.queues}
    for kind, each in chosen:
        if kind == "name" and each not in app.handlers:
            raise Refusal(f"WORKER_APP has no handler of the name {each!r}; worker schema lists those it has.", WRONG)
        if kind == "queue" and not QUEUE.fullmatch(each):
            raise Refusal(f"The queue is called {each!r}, and no queue can be; check the name.", WRONG)
    asyncio.run(_changed(settings, pause_it, chosen))
    for kind, each in chosen:
        hint = "" if kind == "name" or each in read else UNREAD
        typer.echo(f"The {kind} {printable(each)} is paused.{hint}")


def resume(queue: Queues = None, name: Names = None) -> None:
    """Let a paused queue or name go on, at once."""
    settings, chosen = load_settings(), _chosen(queue, name)
    done = asyncio.run(_changed(settings, resume_it, chosen))
    for kind, each in done:
        typer.echo(f"The {kind} {printable(each)} goes on.")
    others = [f"the {kind} {each!r}" for kind, each in chosen if (kind, each) not in done]
    if others:
        raise Refusal(f"Not paused: {', '.join(others)}; worker status lists what is.")


def _chosen(queues: list[str] | None, names: list[str] | None) -> list[tuple[Kind, str]]:
    chosen: list[tuple[Kind, str]] = [("queue", each) for each in queues or []]
    chosen.extend(("name", each) for each in names or [])
    if not chosen:
        raise Refusal("Nothing is named; give --queue Q or --name N.", WRONG)
    return list(dict.fromkeys(chosen))


async def _changed(settings: Settings, change: Change, chosen: list[tuple[Kind, str]]) -> list[tuple[Kind, str]]:
    """Those that weren't so before."""
    async with database(settings) as engine:
        return [(kind, each) for kind, each in chosen if await change(engine, kind, each)]
