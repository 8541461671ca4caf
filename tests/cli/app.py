"""A small application for the command line's tests."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.chunk import Chunk, Step
from worker.errors import Permanent, Snooze
from worker.handler import ChunkedHandler, Handler
from worker.job import Job
from worker.rejects import keep_rejects

GATE = 7
"""The advisory lock that `tests.wait` waits for."""


class Greet(Job, name="tests.greet", aliases=("tests.hello",)):
    """Say hello. Result: greeting."""

    name: str


class Ping(Job, name="tests.ping"):
    """Handled without a run. Result: pong."""


class Fail(Job, name="tests.fail"):
    """Dead at once."""

    reason: str = "it can't be done"


class Later(Job, name="tests.later"):
    """Snoozed for an hour."""


class Wait(Job, name="tests.wait", queue="slow"):
    """Runs until the gate opens."""


class Count(Job, name="tests.count"):
    """Chunk after chunk up to `to`. Dead behind `stop`. Result: counted."""

    to: int
    stop: int | None = None


async def greet(job: Greet, _session: AsyncSession) -> dict[str, str]:
    return {"greeting": f"hello {job.name}"}


async def ping(_job: Ping, _session: AsyncSession) -> dict[str, bool]:
    return {"pong": True}


async def fail(job: Fail, _session: AsyncSession) -> None:
    raise Permanent(job.reason)


async def later(_job: Later, _session: AsyncSession) -> None:
    raise Snooze(timedelta(hours=1))


async def wait(_job: Wait, session: AsyncSession) -> None:
    await session.execute(text("select pg_advisory_xact_lock(:gate)"), {"gate": GATE})


async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    begin = chunk.cursor or 0
    allowed = await session.scalar(text("select current_setting('tests.may_pass', true) = 'on'"))
    if job.stop is not None and begin >= job.stop and not allowed:
        raise Permanent(f"stopped at {begin}")
    end = min(job.to, begin + chunk.size)
    await keep_rejects(session, [(end, "not liked", b"a row")])
    return chunk.step(end if end < job.to else None, done=end - begin, total=job.to, counts={"counted": end - begin})


def demo(*, users_csv: Path | None, orders_csv: Path | None, orders: int) -> int:
    print(f"{orders} orders, users from {users_csv and users_csv.name}, orders from {orders_csv}")  # noqa: T201 - a demo
    return 0 if orders < 10 else 1


app = App(
    handlers=(
        Handler(Greet, greet),
        Handler(Ping, ping, once=False),
        Handler(Fail, fail),
        Handler(Later, later),
        Handler(Wait, wait),
        ChunkedHandler(Count, count, cursor=int, size=10),
    ),
    demo="tests.cli.app:demo",
)
bare = App(handlers=())
not_an_app = 7
