"""Waiting for a job's end: PostgreSQL is asked, since it is the truth; Redis only about a handler that keeps no run."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from pydantic import JsonValue
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.cli.endings import Refusal
from worker.cli.progress import pace
from worker.overview import PROGRESS, RUN_WITH_PARTS
from worker.printable import printable
from worker.wire import RESULT_KEY, deserialize

LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Awaited:
    """The first job of this id that wasn't enqueued before `from_ms`."""

    job_id: str
    from_ms: int


@dataclass(frozen=True, slots=True)
class _Seen:
    ended: bool
    error: str | None = None
    result: JsonValue = None
    done: int = 0
    total: int | None = None
    rate: float | None = None
    time_left_s: float | None = None


_RUN = text(f"""
select r.finished_at is not null as ended,
    case when r.status <> 'completed' then r.status || ': ' || coalesce(r.error, '') end,
    r.result, {PROGRESS}
from {RUN_WITH_PARTS} where r.id = :id and r.enqueued_ms >= :from_ms order by r.enqueued_ms limit 1
""")  # noqa: S608 - put together from constants


async def wait_for_end(engine: AsyncEngine, redis: Redis | None, awaited: Awaited, timeout: timedelta) -> JsonValue:
    """The job's result. `redis`: where the result is, if its handler keeps no run.

    Raises Refusal where the job is dead or cancelled, or hasn't ended within `timeout`. A chunked one shows how far
    it is, if somebody looks.
    """
    seconds = timeout.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            seen = await _end(engine, redis, awaited)
    except TimeoutError:
        hint = f"it goes on, see worker show {awaited.job_id}"
        raise Refusal(f"The job {awaited.job_id} hasn't ended within {seconds:g} s; {hint}.") from None
    if seen.error is not None:
        told = printable(seen.error.splitlines()[0].rstrip("."))
        raise Refusal(f"The job {awaited.job_id} is {told}; see worker show {awaited.job_id}.")
    return seen.result


async def _end(engine: AsyncEngine, redis: Redis | None, awaited: Awaited) -> _Seen:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("rows", total=None, visible=False, pace="")
        async with aclosing(_looks(engine, redis, awaited)) as looks:
            async for seen in looks:
                if seen.ended:
                    return seen
                told = ", ".join(pace(seen.rate, seen.time_left_s))
                progress.update(task, completed=seen.done, total=seen.total, visible=seen.done > 0, pace=told)
    raise AssertionError("The looks go on until the job has ended.")


async def _looks(engine: AsyncEngine, redis: Redis | None, awaited: Awaited) -> AsyncGenerator[_Seen]:
    while True:
        async with engine.connect() as connection:
            row = (await connection.execute(_RUN, {"id": awaited.job_id, "from_ms": awaited.from_ms})).one_or_none()
        if row is not None:
            yield _Seen(row.ended, *row[1:])
        elif redis is not None:
            raw: bytes | None = await redis.get(RESULT_KEY + awaited.job_id)
            told = deserialize(raw) if raw else {}
            if told and told["et"] >= awaited.from_ms:
                yield _Seen(ended=True, error=None if told["s"] else f"dead: {told['r']}", result=told["r"])
        await asyncio.sleep(LOOK_EVERY_S)
