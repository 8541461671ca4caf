"""An application for workers that are processes of their own: `WORKER_APP=tests.consumer.app:app`.

Its handlers say `began` in the log.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.jobs import leave_effect, leave_effects
from tests.support.lifespan import telling
from worker.app import App
from worker.chunk import Chunk, Step
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.run import current_run
from worker.stock import worker_settings

BRIEF = timedelta(milliseconds=100)


class Wait(Job, name="wait"):
    """Leaves an effect and waits for an advisory lock, which the test holds until it may go on."""

    lock: int


class Together(Job, name="together"):
    """As Wait, twenty of them in a batch."""

    lock: int


class Deaf(Job, name="deaf"):
    """Lets nobody cancel it."""


class Hopeless(Job, name="hopeless"):
    """As Deaf, and its timeout is soon over."""


class Stubborn(Job, name="stubborn"):
    """Doesn't let its timeout cancel it, but what comes after that."""


class Stuck(Job, name="stuck"):
    """Blocks the event loop for ever, but only the first time."""


class Mark(Job, name="mark"):
    """Leaves its id and that of the process it ran in, once the test lets go of the lock."""

    lock: int


class Spread(Job, name="spread"):
    """Leaves the numbers 1 to 40, in four partitions; each waits for the lock in its second chunk."""

    lock: int


async def tens(_job: Spread, _session: AsyncSession, _partitions: int) -> Sequence[int]:
    return [10, 20, 30]


async def spread(job: Spread, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    after = (chunk.lower or 0) if chunk.cursor is None else chunk.cursor
    last = 40 if chunk.upper is None else chunk.upper
    numbers = range(after + 1, min(after + chunk.size, last) + 1)
    for number in numbers:
        await session.execute(text("INSERT INTO effect VALUES (:number)"), {"number": str(number)})
    if chunk.cursor is not None:
        _say_began()
        await session.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": job.lock})
    end = numbers[-1]
    counts = {"numbers": len(numbers), "sum": sum(numbers)}
    return chunk.step(None if end == last else end, done=len(numbers), total=10, counts=counts)


async def wait(job: Wait, session: AsyncSession) -> str:
    await leave_effect(session)
    _say_began()
    await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": job.lock})
    return "done"


async def together(jobs: Sequence[Together], session: AsyncSession) -> None:
    await leave_effects(session)
    _say_began(jobs=len(jobs))
    await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": jobs[0].lock})


async def deaf(job: Deaf | Hopeless, session: AsyncSession) -> None:
    _say_began()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


async def stubborn(job: Stubborn, session: AsyncSession) -> None:
    _say_began()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def stuck(job: Stuck, session: AsyncSession) -> None:
    await leave_effect(session)
    marker = Path(os.environ["WORKER_FILES_DIR"]) / "was-stuck"
    if not marker.exists():
        marker.touch()
        _say_began()
        while True:
            time.sleep(60)  # noqa: ASYNC251 - that's what is wrong with it


async def mark(job: Mark, session: AsyncSession) -> None:
    await session.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": job.lock})
    mark = f"{current_run().job_id} {os.getpid()}"
    await session.execute(text("INSERT INTO effect VALUES (:mark)"), {"mark": mark})


def _say_began(**told: object) -> None:
    structlog.get_logger("test").warning("began", **told)


app = App(
    handlers=(
        Handler(Wait, wait),
        BatchHandler(Together, together, max_size=20, linger=timedelta(seconds=5)),
        Handler(Deaf, deaf),
        Handler(Hopeless, deaf, timeout=BRIEF),
        Handler(Stubborn, stubborn, timeout=BRIEF),
        Handler(Stuck, stuck, timeout=BRIEF),
        ChunkedHandler(Spread, spread, cursor=int, size=4, target=None, partitions=4, split=tens),
        Handler(Mark, mark, once=False),  # no ledger keeps a second delivery from being seen
    ),
    lifespan=telling,
)
WorkerSettings = worker_settings(app)
