"""worker replay, cancel and discard: what people do to dead and waiting jobs."""

import asyncio
from typing import Annotated

import typer

from worker.app import App
from worker.cancel import Asked
from worker.cancel import cancel as cancel_job
from worker.cli.endings import WRONG, Refusal
from worker.cli.loading import load_app
from worker.cli.output import printable
from worker.cli.reach import broker, database
from worker.operations import Done, UnknownIdError, WrongStatusError, replay_all
from worker.operations import discard as discard_job
from worker.operations import replay as replay_job
from worker.settings import Settings, load_settings

Id = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as in worker runs.")]


def replay(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of dead jobs, as in worker runs.")
    ] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Every job that is dead now.")] = False,
) -> None:
    """Let dead jobs run again, after you have mended what killed them.

    A replayed job keeps its id and its original payload, has all its attempts again, and a chunked one goes on from its
    last committed chunk. Where several are given and one can't be replayed, the others are.
    """
    if bool(job_ids) == all_:
        raise Refusal("worker replay takes ids of dead jobs, or --all; give one of them.", WRONG)
    settings = load_settings()
    if all_:
        replayed = asyncio.run(_replay_all(settings))
        typer.echo(f"Jobs that wait to run again: {len(replayed)}." if replayed else "No job is dead.")
        return
    refused = asyncio.run(_replay(settings, job_ids or []))
    if refused:
        raise Refusal(" ".join(map(str, refused)))


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
    """Put a dead job aside for good. It stays visible until it is pruned, and can't be replayed."""
    done = asyncio.run(_discard(load_settings(), job_id))
    typer.echo(f"{_told(job_id, done.name)} is discarded.")


async def _replay(settings: Settings, job_ids: list[str]) -> list[Exception]:
    refused: list[Exception] = []
    async with database(settings) as engine:
        for job_id in dict.fromkeys(job_ids):
            try:
                done = await replay_job(engine, job_id)
            except (UnknownIdError, WrongStatusError) as error:
                refused.append(error)
            else:
                typer.echo(f"{_told(job_id, done.name)} waits to run again.")
    return refused


async def _replay_all(settings: Settings) -> list[Done]:
    async with database(settings) as engine:
        return await replay_all(engine)


async def _cancel(settings: Settings, app: App, job_id: str) -> Done | Asked:
    queues = {*settings.queues, *(handler.job.job_queue for handler in app.handlers.values())}
    async with database(settings) as engine, broker(settings) as redis:
        return await cancel_job(engine, redis, job_id, sorted(queues))


async def _discard(settings: Settings, job_id: str) -> Done:
    async with database(settings) as engine:
        return await discard_job(engine, job_id)


def _told(job_id: str, name: str) -> str:
    return printable(f"{job_id} ({name})")
