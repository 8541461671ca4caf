"""An application whose jobs kill their process: `WORKER_APP=tests.poison.app:app`. They say `began` in the log."""

import argparse
import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Literal, NoReturn

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.lifespan import telling
from worker.app import App
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler, Handler
from worker.job import Job
from worker.retry import RetryPolicy
from worker.run import current_run

QUICK = RetryPolicy(attempts=9, base=timedelta(milliseconds=20), factor=1)

Way = Literal["exit", "segfault", "kill", "hang"]


class Poison(Job, name="poison"):
    """Kills its process once the test lets go of the lock."""

    way: Way = "exit"
    lock: int = 0


class Once(Job, name="once"):
    """The same, and its policy allows one attempt."""

    way: Way


class Neighbour(Job, name="neighbour"):
    """Leaves an effect once the test lets go of the lock."""

    lock: int = 0


class Parse(Job, name="parse"):
    """Reads a command line in tasks of its own, which exit where it is wrong. Nobody awaits the first."""

    line: str


class Count(Job, name="count"):
    """Chunk after chunk up to `to`. Kills its process when it first sees each of `deadly`, or `always`."""

    to: int
    deadly: tuple[int, ...]
    always: bool = False


def _exit() -> NoReturn:
    os._exit(9)


def _segfault() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    """As the kernel does where memory is out."""
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:
        time.sleep(60)


WAYS: Mapping[Way, Callable[[], None]] = {"exit": _exit, "segfault": _segfault, "kill": _kill, "hang": _hang}


async def poison(job: Poison, session: AsyncSession) -> None:
    await _leave_effect(session)
    await _wait(session, job.lock)
    WAYS[job.way]()


async def once(job: Once, session: AsyncSession) -> None:
    await _leave_effect(session)
    WAYS[job.way]()


async def neighbour(job: Neighbour, session: AsyncSession) -> None:
    await _leave_effect(session)
    await _wait(session, job.lock)


async def parse(job: Parse, session: AsyncSession) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int)
    forgotten = asyncio.create_task(_parse(parser, job.line))
    await asyncio.wait((forgotten,))
    await asyncio.gather(_parse(parser, job.line), asyncio.sleep(0))


async def _parse(parser: argparse.ArgumentParser, line: str) -> None:
    parser.parse_args(line.split())


async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    begin = chunk.cursor or 0
    if begin in job.deadly and (job.always or current_run().attempt == 1):
        _exit()
    end = min(job.to, begin + chunk.size)
    return chunk.step(end if end < job.to else None, done=end - begin, counts={"counted": end - begin})


async def _leave_effect(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": current_run().job_id})
    structlog.get_logger("test").warning("began", pid=os.getpid())
    await asyncio.sleep(0)


async def _wait(session: AsyncSession, lock: int) -> None:
    await session.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": lock})


app = App(
    handlers=(
        Handler(Poison, poison, retry=QUICK),
        Handler(Once, once, retry=RetryPolicy(attempts=1), timeout=timedelta(milliseconds=100)),
        Handler(Neighbour, neighbour),
        Handler(Parse, parse, retry=RetryPolicy(attempts=2, base=timedelta(0))),
        ChunkedHandler(Count, count, cursor=int, size=1, retry=QUICK),
    ),
    lifespan=telling,
)
