"""worker replay, cancel and discard: what people do to dead and waiting jobs."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.app import App
from worker.cancel import Asked
from worker.cancel import cancel as cancel_job
from worker.cli.endings import WRONG, Refusal
from worker.cli.loading import load_app
from worker.cli.output import print_json
from worker.cli.reach import broker, database
from worker.limits import Rate
from worker.operations import Done, UnknownIdError, Wanted, WrongStatusError, count_dead, discard_all, replay_all
from worker.operations import discard as discard_job
from worker.operations import replay as replay_job
from worker.printable import printable
from worker.settings import Settings, load_settings

RATE = re.compile(r"([1-9]\d{0,6})/([smh])")
UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as in worker runs.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of dead jobs, as in worker runs.")]
Name = Annotated[str | None, typer.Option(help="Every dead job of this name.")]
Error = Annotated[str | None, typer.Option(help="Every dead job whose error holds this text.")]
All = Annotated[bool, typer.Option("--all", help="Every job that is dead now.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask. Without a terminal nobody is asked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON a job.")]


def replay(
    job_ids: Ids = None,
    *,
    name: Name = None,
    error: Error = None,
    all_: All = False,
    rate: Annotated[str | None, typer.Option(help="So many at a time, as 10/s, 600/m or 5000/h.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let dead jobs run again, after you have mended what killed them.

    A replayed job keeps its id and its original payload, has all its attempts again, and a chunked one goes on from its
    last committed chunk. Where several are given and one can't be replayed, the others are.

    A dead job that a newer one of its key has followed runs again only where its id is given: its payload may be out of
    date. --name and --error may stand together.

    With --rate the command is done at once: each job is given its own due time.
    """
    is_bulk = _is_bulk("replay", job_ids, name, error, all_=all_)
    if rate is not None and not is_bulk:
        raise Refusal("--rate goes with --name, --error or --all; leave it out for ids.", WRONG)
    settings, print_one = load_settings(), print_json if as_json else _print_replayed
    if is_bulk:
        wanted, pace = Wanted(name, error), None if rate is None else _rate(rate)
        if not yes and is_interactive():
            count = asyncio.run(_count(settings, wanted, with_replaced=False))
            typer.confirm(f"Let {count} dead jobs run again?", abort=True, err=True)
        replayed = asyncio.run(_replay_all(settings, wanted, pace))
        if as_json:
            for done in replayed:
                print_one(done)
        else:
            _print_count("Jobs that wait to run again", replayed, all_=all_)
        return
    asyncio.run(_each(settings, job_ids or [], replay_job, print_one))


def _is_bulk(command: str, job_ids: list[str] | None, name: str | None, error: str | None, *, all_: bool) -> bool:
    """Whether the jobs are named by what they have in common. Raises Refusal where nothing or too much is given."""
    is_bulk = all_ or name is not None or error is not None
    if bool(job_ids) == is_bulk or (all_ and (name, error) != (None, None)):
        raise Refusal(
            f"worker {command} takes ids of dead jobs, or --name and --error, or --all; give one of them.", WRONG
        )
    if "" in {name, error}:
        raise Refusal("--name and --error can't be empty, which would mean every dead job; say --all for that.", WRONG)
    return is_bulk


def _print_count(told: str, done: list[Done], *, all_: bool) -> None:
    none = "No job is dead." if all_ else "No such job is dead."
    typer.echo(f"{told}: {len(done)}." if done else none)


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


def discard(
    job_ids: Ids = None,
    *,
    name: Name = None,
    error: Error = None,
    all_: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put dead jobs aside for good. They stay visible until they are pruned, and can't be replayed.

    Of several dead jobs of an id it is the newest. --name, --error and --all mean every dead job, also one that a newer
    one of its key has followed. --name and --error may stand together.
    """
    is_bulk = _is_bulk("discard", job_ids, name, error, all_=all_)
    settings, print_one = load_settings(), print_json if as_json else _print_discarded
    if not is_bulk:
        asyncio.run(_each(settings, job_ids or [], discard_job, print_one))
        return
    wanted = Wanted(name, error)
    if not yes and is_interactive():
        count = asyncio.run(_count(settings, wanted, with_replaced=True))
        typer.confirm(f"Discard {count} dead jobs for good?", abort=True, err=True)
    discarded = asyncio.run(_discard_all(settings, wanted))
    if as_json:
        for done in discarded:
            print_one(done)
    else:
        _print_count("Discarded jobs", discarded, all_=all_)


def _print_discarded(done: Done) -> None:
    typer.echo(f"{_told(done.job_id, done.name)} is discarded.")


async def _each(
    settings: Settings,
    job_ids: list[str],
    act: Callable[[AsyncEngine, str], Awaitable[Done]],
    print_one: Callable[[Done], None],
) -> None:
    """Raises Refusal, once all are tried, for those that can't be."""
    refused: list[str] = []
    async with database(settings) as engine:
        for job_id in dict.fromkeys(job_ids):
            try:
                done = await act(engine, job_id)
            except (UnknownIdError, WrongStatusError) as error:
                refused.append(str(error))
            else:
                print_one(done)
    if refused:
        raise Refusal(" ".join(refused))


async def _replay_all(settings: Settings, wanted: Wanted, rate: Rate | None) -> list[Done]:
    async with database(settings) as engine:
        return await replay_all(engine, wanted, rate)


async def _discard_all(settings: Settings, wanted: Wanted) -> list[Done]:
    async with database(settings) as engine:
        return await discard_all(engine, wanted)


async def _count(settings: Settings, wanted: Wanted, *, with_replaced: bool) -> int:
    async with database(settings) as engine:
        return await count_dead(engine, wanted, with_replaced=with_replaced)


async def _cancel(settings: Settings, app: App, job_id: str) -> Done | Asked:
    queues = {*settings.queues, *app.queues}
    async with database(settings) as engine, broker(settings) as redis:
        return await cancel_job(engine, redis, job_id, sorted(queues))


def _told(job_id: str, name: str) -> str:
    return printable(f"{job_id} ({name})")
