"""worker status: how much waits, and who works on it."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from worker.app import App
from worker.cli.endings import Refusal
from worker.cli.loading import load_app
from worker.cli.output import print_json, print_table, shown
from worker.cli.reach import broker, database
from worker.heartbeat import Heartbeat, live_workers
from worker.printable import printable
from worker.settings import Settings, load_settings
from worker.status import Status
from worker.status import status as look


def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object. Ages are in seconds.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="For health checks: do both servers answer, and does a worker of this host live?"),
    ] = False,
) -> None:
    """Show what waits in each queue, the workers that live, the outbox's backlog, and the dead jobs.

    Watch the age of the oldest due job and of the oldest unsent one: they grow when something is wrong. An unknown job
    has no handler in WORKER_APP; it waits for a worker that has one. It is found among the oldest jobs of each queue.
    """
    settings = load_settings()
    if check:
        _check(settings)
        return
    found = asyncio.run(_status(settings, load_app(settings.app)))
    if as_json:
        print_json(found)
    else:
        _print(found)


def _check(settings: Settings) -> None:
    host = socket.gethostname()
    alive = [worker for worker in asyncio.run(_workers(settings)) if worker.host == host]
    if not alive:
        raise Refusal(f"No worker of the host {host} lives; start worker run, or look into its log.")
    typer.echo(f"Both servers answer; workers of {host} that live: {len(alive)}.")


async def _workers(settings: Settings) -> list[Heartbeat]:
    async with database(settings), broker(settings) as redis:
        return await live_workers(redis)


async def _status(settings: Settings, app: App) -> Status:
    queues = {*settings.queues, *app.queues}
    async with database(settings) as engine, broker(settings) as redis:
        lease = timedelta(seconds=settings.lease)
        return await look(engine, redis, queues=queues, known=app.handlers, lease=lease)


def _print(found: Status) -> None:
    columns = ("queue", "waiting", "due", "oldest due, s", "in flight", "unsent", "dead")
    print_table(
        columns,
        ((q.name, q.waiting, q.due, q.oldest_due_s, q.in_flight, q.unsent, q.dead) for q in found.queues),
    )
    typer.echo()
    now = datetime.now(UTC)
    print_table(
        ("worker", "running", "queues", "for, s"),
        ((f"{w.host}:{w.pid}", w.running, w.queues, now.timestamp() - w.started_ms / 1000) for w in found.workers),
    )
    typer.echo()
    if not found.workers:
        typer.echo("No worker lives: nothing is relayed and nothing runs. Start worker run.")
    for queue in map(printable, found.unread_queues):
        typer.echo(f"Jobs wait in the queue {queue}, which no worker reads. Start worker run --queue {queue}.")
    if found.oldest_unsent_s is not None:
        typer.echo(f"The oldest unsent outbox row has been due for {shown(found.oldest_unsent_s)} s.")
    if found.dead:
        typer.echo(f"Dead jobs: {found.dead}. See worker runs --status dead, then worker replay or discard.")
    for kind, names in (("queue", found.paused_queues), ("name", found.paused_names)):
        for name in names:
            typer.echo(f"Paused: the {kind} {printable(name)}. worker resume --{kind} {printable(name)} lets it go on.")
    for name, count in found.unknown_jobs.items():
        typer.echo(f"Jobs of the unknown name {printable(name)}: {count}. They wait for a worker that has a handler.")
