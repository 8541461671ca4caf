"""worker runs and worker show: what waits, ran and failed, and why."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import typer
from pydantic_core import from_json, to_json

from worker.cli.endings import WRONG, Refusal
from worker.cli.output import print_json, print_table, shown
from worker.cli.progress import bar, pace, told
from worker.cli.reach import database
from worker.ledger import RunStatus
from worker.limits import Paused
from worker.operations import UnknownIdError
from worker.overview import Details, Entry, details, entries, message_of
from worker.pauses import paused
from worker.printable import printable
from worker.settings import Settings, load_settings
from worker.wire import Unreadable, decode

OTHERWISE = frozenset({"done", "total", "rate", "time_left_s", "partitions", "failures"})
"""Fields that people are shown in lines of their own."""
DATA = frozenset({"result", "cursor"})
"""Fields that are the job's own."""
MAX_ERROR = 100
"""Characters of an error in the list; `worker show` has all of it."""


def runs(
    *,
    status: Annotated[RunStatus | None, typer.Option(help="Only these.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only jobs of this queue.")] = None,
    error: Annotated[str | None, typer.Option(help="Only where the error holds this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a job.")] = False,
) -> None:
    """List jobs, newest first: those that ran, and those that wait.

    The time is when a job ended or began, or when it is due. A job that was sent straight to Redis appears here with
    its first attempt.
    """
    wanted = {"status": status, "name": name, "queue": queue, "error": error, "limit": limit}
    found, held = asyncio.run(_entries(load_settings(), **wanted))
    if as_json:
        for entry in found:
            print_json({**asdict(entry), "paused": _held_by(entry, held)})
        return
    print_table(("status", "job", "id", "time", "failures", "rows", "error"), (_row(entry, held) for entry in found))


def show(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id, as worker enqueue printed it.")],
    *,
    payload: Annotated[
        bool,
        typer.Option("--payload", help="Show the payload too, where WORKER_SHOW_PAYLOADS allows it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show one job: its status, times, result, and every failed attempt with its traceback.

    An id may stand for several jobs, one after another; the newest is shown. Errors and tracebacks may hold data.
    """
    settings = load_settings()
    if payload and not settings.show_payloads:
        raise Refusal("Payloads may hold personal data; set WORKER_SHOW_PAYLOADS=true to see them.", WRONG)
    found, message, held = asyncio.run(_details(settings, job_id))
    fields = {**_fields(found), "paused": _held_by(found.entry, held)}
    if payload:
        if message is None:
            raise Refusal(
                f"The payload of {job_id} isn't kept; it is while a job waits, and where it is dead or cancelled."
            )
        fields["payload"] = _payload(message)
    if as_json:
        print_json(fields)
    else:
        _tell(found, fields)


def _tell(found: Details, fields: dict[str, Any]) -> None:
    """For people: what there is to say, a line a field, then the partitions and the failures."""
    if found.entry.done or found.entry.total:
        fields["progress"] = _progress(found.entry)
    for field, value in fields.items():
        if field in DATA and value is not None:
            typer.echo(f"{field:12} {printable(to_json(value).decode())}")
        elif value not in (None, 0) and field not in OTHERWISE:
            typer.echo(f"{field:12} {shown(value)}")
    for part in found.partitions:
        typer.echo(f"{'partition':12} {printable(part.id)} {part.status:9} {_progress(part)}")
    for failure in found.failures:
        typer.echo(f"\nfailure {failure.attempt} at {shown(failure.failed_at)} on {printable(failure.worker)}")
        for line in failure.traceback.splitlines():
            typer.echo(f"    {printable(line)}")


async def _entries(settings: Settings, **wanted: Any) -> tuple[list[Entry], Paused]:
    async with database(settings) as engine:
        async with engine.connect() as connection:
            found = await entries(connection, **wanted)
        return found, await paused(engine)


async def _details(settings: Settings, job_id: str) -> tuple[Details, bytes | None, Paused]:
    async with database(settings) as engine:
        async with engine.connect() as connection:
            found = await details(connection, job_id)
            if found is None:
                raise UnknownIdError(job_id)
            message = await message_of(connection, found.entry)
        return found, message, await paused(engine)


def _held_by(entry: Entry, held: Paused) -> str | None:
    """What `worker resume` must be told before it goes on: `queue mail`, `name users.export`, both; None: nothing."""
    if entry.is_final:
        return None
    by = [f"queue {entry.queue}"] * (entry.queue in held.queues) + [f"name {entry.name}"] * (entry.name in held.names)
    return ", ".join(by) or None


def _row(entry: Entry, held: Paused) -> tuple[object, ...]:
    when = entry.finished_at or entry.begun_at
    time = f"due {shown(entry.due_at)}" if entry.due_at else when
    rows = "" if not entry.done else f"{entry.done}/{entry.total}" if entry.total else entry.done
    if entry.time_left_s is not None:
        rows = f"{rows} {', '.join(pace(None, entry.time_left_s))}"
    status = f"{entry.status}, paused" if _held_by(entry, held) else entry.status
    return (status, entry.name, entry.id, time, entry.attempt or "", rows, (entry.error or "")[:MAX_ERROR])


def _progress(entry: Entry) -> str:
    line = told(entry.done, entry.total, entry.rate, entry.time_left_s)
    return f"{bar(entry.done, entry.total)} {line}" if entry.total else line


def _fields(found: Details) -> dict[str, Any]:
    all_of_it = asdict(found)
    entry: dict[str, Any] = all_of_it.pop("entry")
    return {**entry, **all_of_it}


def _payload(message: bytes) -> object:
    """The payload as JSON, or the text of a message that can't be read."""
    read = decode(message)
    return message.decode("utf-8", "backslashreplace") if isinstance(read, Unreadable) else from_json(read.payload)
