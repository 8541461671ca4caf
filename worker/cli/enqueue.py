"""worker enqueue: one job, from the command line."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

import typer
from pydantic import JsonValue
from redis.exceptions import ConnectionError, RedisError, TimeoutError  # noqa: A004
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.cli.endings import AWAY, WRONG, Refusal, ending
from worker.cli.loading import load_app
from worker.cli.output import print_json
from worker.cli.reach import broker, database
from worker.cli.wait import Awaited, wait_for_end
from worker.database import DatabaseAway
from worker.errors import InvalidPayload
from worker.faults import is_lost_connection, of_driver
from worker.handler import AnyHandler, keeps_run
from worker.job import Job, unread_keys
from worker.outbox import enqueue as add_to_outbox
from worker.printable import printable
from worker.queue import Queue
from worker.settings import Settings, load_settings

LONGEST_S = 10 * 365 * 86_400

_LAST_SENT = text("""
select coalesce(max(enqueued_ms), -1) from (
    select enqueued_ms from worker.run where id = :id
    union all select enqueued_ms from worker.outbox where id = :id and sent_epoch is not null
) as sent
""")


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for."""

    job: Job
    key: str | None
    job_id: str | None
    delay: timedelta | None
    at: datetime | None
    queue: str | None
    is_kept: bool
    """Whether its handler keeps a run, which tells of it when it is done."""


def enqueue(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job's name, as in worker schema.")],
    *,
    payload: Annotated[str, typer.Option("--json", help="The payload, a JSON object.")] = "{}",
    key: Annotated[str | None, typer.Option(help="Coalesce with waiting jobs of this name and key.")] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            help="An idempotency key: the same id is applied once while its run is kept; with --direct: while its "
            "message or its result is kept in Redis."
        ),
    ] = None,
    delay: Annotated[float | None, typer.Option(min=0, max=LONGEST_S, help="Seconds until it is due.")] = None,
    at: Annotated[
        str | None, typer.Option(help="When it is due: ISO 8601 with a zone, 2030-01-31T09:00+01:00.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue, where it isn't the job's own.")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Straight to Redis, past the outbox: lost if Redis loses it.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end and print its result as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0, max=LONGEST_S, help="Seconds that --wait waits.")] = 300,
) -> None:
    """Enqueue one job and print its id.

    It goes through the outbox, as enqueue(session, job) does: once this command has printed the id, the job is applied
    exactly once. The payload is checked against the job's model first, and a key that is no field of it is refused.

    With --wait the exit code is 1 where the job ends dead or cancelled, or not in time.

    Example: worker enqueue users.create --json '{"email": "ada@example.org", "name": "Ada"}' --wait
    """
    if direct and key is not None:
        raise Refusal("--key needs the outbox, and --direct goes past it; give one of them.", WRONG)
    settings = load_settings()
    handler = _handler(load_app(settings.app), settings.app, name)
    if wait and not keeps_run(handler) and settings.keep_result == 0:
        raise Refusal(
            f"--wait can't see the end of {name}, whose handler keeps no run, since WORKER_KEEP_RESULT is 0; "
            "leave --wait out, or let workers keep results.",
            WRONG,
        )
    try:
        limit, due_in = timedelta(seconds=timeout), timedelta(seconds=delay) if delay is not None else None
        job, is_kept = _read(handler.job, payload.encode()), keeps_run(handler)
        order = _Order(job, key, job_id, due_in, _moment(at), queue, is_kept)
        awaited = asyncio.run(_send(settings, order) if direct else _leave(settings, order))
    except (InvalidPayload, ValueError) as error:  # their texts name what is wrong, and no value of the payload
        raise Refusal(str(error), WRONG) from error
    typer.echo(awaited.job_id)
    if wait:
        print_json(_result(settings, awaited, limit, is_kept=is_kept))


def _read(kind: type[Job], payload: bytes) -> Job:
    """Raises InvalidPayload, and Refusal for a key that another producer may send, and who types it has misspelt."""
    job = kind.from_payload(payload)
    if unread := unread_keys(kind, payload):
        keys = "1 key" if unread == 1 else f"{unread} keys"
        fields = ", ".join(field.alias or name for name, field in kind.model_fields.items()) or "none"
        raise Refusal(f"The payload has {keys} that {kind.job_name} doesn't read; its fields are {fields}.", WRONG)
    return job


async def _leave(settings: Settings, order: _Order) -> Awaited:
    """Through the outbox. Of the jobs of one key the first is awaited after those that were sent already."""
    async with database(settings) as engine, AsyncSession(engine) as session:
        job_id = add_to_outbox(
            session, order.job, key=order.key, job_id=order.job_id, delay=order.delay, at=order.at, queue=order.queue
        )
        try:
            last: int = (await session.execute(_LAST_SENT, {"id": job_id})).scalar_one() if order.key else -1
            await session.commit()
        except DBAPIError as error:
            if is_lost_connection(error):
                raise _unanswered("PostgreSQL", f"the job {job_id}", f"worker show {job_id}", order) from error
            raise
        return Awaited(job_id, last + 1)


async def _send(settings: Settings, order: _Order) -> Awaited:
    """Straight to Redis."""
    now_ms = time.time_ns() // 1_000_000
    async with broker(settings) as redis:
        queue = Queue(redis, order.queue or order.job.job_queue)
        try:
            job_id = await queue.enqueue(order.job, job_id=order.job_id, delay=order.delay, at=order.at)
        except (ConnectionError, TimeoutError) as error:
            raise _unanswered("Redis", "the job", "worker status and worker runs", order) from error
    if job_id is None:
        raise Refusal(
            f"{order.job_id} is queued already or has a result, so nothing was sent; choose another --job-id."
        )
    return Awaited(job_id, now_ms)


def _unanswered(server: str, job: str, look: str, order: _Order) -> Refusal:
    """What was sent may have arrived though its answer was lost: who simply enqueues again may have the job twice."""
    lost = f"The connection to {server} was lost before it said whether {job} was enqueued"
    untold = "" if order.is_kept else "; its handler keeps no run, so where nothing is found it may be done already"
    return Refusal(f"{lost}; look with {look} before you enqueue it again{untold}.", AWAY)


def _result(settings: Settings, awaited: Awaited, limit: timedelta, *, is_kept: bool) -> JsonValue:
    """Raises Refusal, which says so where a server is lost under the wait: the job is enqueued all the same."""
    try:
        return asyncio.run(_wait(settings, awaited, limit, is_kept=is_kept))
    except (DBAPIError, DatabaseAway, RedisError) as error:
        code, _ = ending(error)
        failed = f"is enqueued, but waiting for its end failed ({type(of_driver(error)).__name__})"
        hint = f"don't enqueue it again, see worker show {awaited.job_id}"
        raise Refusal(f"The job {awaited.job_id} {failed}; {hint}.", code) from error


async def _wait(settings: Settings, awaited: Awaited, limit: timedelta, *, is_kept: bool) -> JsonValue:
    async with database(settings) as engine:
        if is_kept:
            return await wait_for_end(engine, None, awaited, limit)
        async with broker(settings) as redis:
            return await wait_for_end(engine, redis, awaited, limit)


def _handler(app: App, app_name: str, name: str) -> AnyHandler:
    """Raises Refusal, which tells the App's name: who forgot WORKER_APP in this shell sees the default."""
    if name not in app.handlers:
        known = ", ".join(sorted(app.handlers)) or "none"
        lacking = f"{app_name} (WORKER_APP) has no handler of the job {printable(name)!r}"
        raise Refusal(f"{lacking}; known are {known}.", WRONG)
    return app.handlers[name]


def _moment(at: str | None) -> datetime | None:
    """Raises ValueError where it isn't clear when that is."""
    if at is None:
        return None
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"--at is {at!r}; give a time in ISO 8601 with a zone, such as 2030-01-31T09:00+01:00.")
    return moment
