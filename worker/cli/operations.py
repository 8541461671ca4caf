"""worker replay, cancel and discard: what people do to dead and waiting jobs."""

import asyncio
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import typer

from worker.app import App
from worker.cancel import Asked
from worker.cancel import cancel as cancel_job
from worker.cli.endings import WRONG, Refusal
from worker.cli.loading import load_app
from worker.cli.output import print_json
from worker.cli.reach import broker, database
from worker.limits import Rate
from worker.operations import Done, UnknownIdError, Wanted, WrongStatusError, count_dead, replay_all
from worker.operations import discard as discard_job
from worker.operations import replay as replay_job
from worker.printable import printable
from worker.settings import Settings, load_settings

RATE = re.compile(r"([1-9]\d{0,6})/([smh])")
UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as in worker runs.")]


def replay(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of dead jobs, as in worker runs.")
    ] = None,
    *,
    name: Annotated[str | None, typer.Option(help="Every dead job of this name.")] = None,
    error: Annotated[str | None, typer.Option(help="Every dead job whose error holds this text.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every job that is dead now.")] = False,
    rate: Annotated[str | None, typer.Option(help="So many at a time, as 10/s, 600/m or 5000/h.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask. Without a terminal nobody is asked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a job.")] = False,
) -> None:
    """Let dead jobs run again, after you have mended what killed them.

    A replayed job keeps its id and its original payload, has all its attempts again, and a chunked one goes on from its
    last committed chunk. Where several are given and one can't be replayed, the others are.

    A dead job that a newer one of its key has followed runs again only where its id is given: its payload may be out of
    date. --name and --error may stand together.

    With --rate the command is done at once: each job is given its own due time.
    """
    is_bulk = all_ or name is not None or error is not None
    if bool(job_ids) == is_bulk or (all_ and (name, error) != (None, None)):
        raise Refusal("worker replay takes ids of dead jobs, or --name and --error, or --all; give one of them.", WRONG)
    if "" in {name, error}:
        raise Refusal("--name and --error can't be empty, which would mean every dead job; say --all for that.", WRONG)
    if rate is not None and not is_bulk:
        raise Refusal("--rate goes with --name, --error or --all; leave it out for ids.", WRONG)
    settings, print_one = load_settings(), print_json if as_json else _print_replayed
    if is_bulk:
        wanted, pace = Wanted(name, error), None if rate is None else _rate(rate)
        if not yes and is_interactive():
            count = asyncio.run(_count(settings, wanted))
            typer.confirm(f"Let {count} dead jobs run again?", abort=True, err=True)
        replayed = asyncio.run(_replay_all(settings, wanted, pace))
        if as_json:
            for done in replayed:
                print_one(done)
        else:
            none = "No job is dead." if all_ else "No such job is dead."
            typer.echo(f"Jobs that wait to run again: {len(replayed)}." if replayed else none)
        return
    refused = asyncio.run(_replay(settings, job_ids or [], print_one))
    if refused:
        raise Refusal(" ".join(map(str, refused)))


def is_interactive() -> bool:
    """Whether somebody sits there who can be asked."""
    return sys.stdin.isatty()


def _rate(given: str) -> Rate:
    match = RATE.fullmatch(given)
    if match is None:
        raise Refusal(f"--rate is {given!r}; write it as 10/s, 600/m or 5000/h.", WRONG)
    return Rate(int(match[1]), UNITS[match[2]])


def _print_replayed(done: Done) -> None:
    typer.echo(f"{_told(done.job_id, done.name)} waits to run again.")


def cancel(job_id: Id) -> None:
    """Cancel a job that waits, backs off or is between its chunks.

    A job that is running is asked to abort: its worker rolls it back. What is final stays as it is.
    """
    settings = load_settings()
    match asyncio.run(_cancel(settings, load_app(settings.app), job_id)):
        case Asked(name=name):
            typer.echo(f"{_told(job_id, name)} is running; its worker was asked to abort it, see worker show.")
        case Done(name=name):
            typer.echo(f"{_told(job_id, name)} is cancelled.")


def discard(job_id: Id) -> None:
    """Put a dead job aside for good. It stays visible until it is pruned, and can't be replayed.

    Of several dead jobs of an id it is the newest.
    """
    done = asyncio.run(_discard(load_settings(), job_id))
    typer.echo(f"{_told(job_id, done.name)} is discarded.")


async def _replay(settings: Settings, job_ids: list[str], print_one: Callable[[Done], None]) -> list[Exception]:
    refused: list[Exception] = []
    async with database(settings) as engine:
        for job_id in dict.fromkeys(job_ids):
            try:
                done = await replay_job(engine, job_id)
            except (UnknownIdError, WrongStatusError) as error:
                refused.append(error)
            else:
                print_one(done)
    return refused


async def _replay_all(settings: Settings, wanted: Wanted, rate: Rate | None) -> list[Done]:
    async with database(settings) as engine:
        return await replay_all(engine, wanted, rate)


async def _count(settings: Settings, wanted: Wanted) -> int:
    async with database(settings) as engine:
        return await count_dead(engine, wanted)


async def _cancel(settings: Settings, app: App, job_id: str) -> Done | Asked:
    queues = {*settings.queues, *app.queues}
    async with database(settings) as engine, broker(settings) as redis:
        return await cancel_job(engine, redis, job_id, sorted(queues))


async def _discard(settings: Settings, job_id: str) -> Done:
    async with database(settings) as engine:
        return await discard_job(engine, job_id)


def _told(job_id: str, name: str) -> str:
    return printable(f"{job_id} ({name})")
