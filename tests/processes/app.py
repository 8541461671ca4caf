"""An application for processes: `WORKER_APP=tests.processes.app:app`. Its handlers say which process they run in."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from multiprocessing.synchronize import Event

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.handler import Handler
from worker.job import Job
from worker.shield import in_thread


class Step(Job, name="step"):
    """Leaves an effect with the pid. Takes `grow_mb` of memory and never gives it back."""

    grow_mb: int = 0


class Wait(Job, name="wait"):
    """Leaves an effect and waits for an advisory lock, which the test holds until it may go on."""

    lock: int


class Thread(Job, name="thread"):
    """Leaves a thread behind that doesn't end, its own or one of the event loop's."""

    of_loop: bool = False


class Leave(Job, name="leave"):
    """Ends its process with a code that means a refusal, where a command ends with it."""

    code: int


class Meddle(Job, name="meddle"):
    """Cancels all tasks there are."""


class Upset(Job, name="upset"):
    """Makes fail what the lifespan of `refreshing` has started."""


class Fork(Job, name="fork"):
    """Forks a process, asks it to end, and says with what it did."""

    signum: int


HOARD: list[bytes] = []
UPSET = asyncio.Event()


async def step(job: Step, session: AsyncSession) -> None:
    HOARD.append(b"x" * (job.grow_mb * 2**20))
    await _leave_effect(session)


async def wait(job: Wait, session: AsyncSession) -> None:
    await _leave_effect(session)
    await session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": job.lock})


async def thread(job: Thread, session: AsyncSession) -> None:
    if job.of_loop:
        _ = asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
    else:
        threading.Thread(target=time.sleep, args=(3600,), name="endless").start()


async def leave(job: Leave, session: AsyncSession) -> None:
    os._exit(job.code)


async def meddle(job: Meddle, session: AsyncSession) -> None:
    for task in asyncio.all_tasks():
        task.cancel()


async def upset(job: Upset, session: AsyncSession) -> None:
    UPSET.set()


@asynccontextmanager
async def refreshed() -> AsyncGenerator[None]:
    """With a task beside the jobs, whose failure cancels the one that has opened it."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_refresh())
        yield


async def _refresh() -> None:
    await UPSET.wait()
    raise ConnectionError("no such service")


async def fork(job: Fork, session: AsyncSession) -> None:
    code = await in_thread(_forked, job.signum)
    structlog.get_logger("test").warning("forked", code=code)


def _forked(signum: int) -> int | None:
    """Give the exit code of a process that was sent `signum` once it ran."""
    context = multiprocessing.get_context("fork")
    running = context.Event()
    process = context.Process(target=_run_on, args=(running,))
    process.start()
    running.wait()
    os.kill(process.pid or 0, signum)
    process.join()
    return process.exitcode


def _run_on(running: Event) -> None:
    running.set()
    while True:
        signal.pause()


async def _leave_effect(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO effect VALUES (:pid)"), {"pid": os.getpid()})
    loop = type(asyncio.get_running_loop()).__module__
    structlog.get_logger("test").warning("began", pid=os.getpid(), loop=loop)


app = App(
    handlers=(
        Handler(Step, step),
        Handler(Wait, wait),
        Handler(Thread, thread),
        Handler(Leave, leave),
        Handler(Meddle, meddle),
        Handler(Fork, fork),
    )
)
refreshing = App(handlers=(Handler(Upset, upset),), lifespan=refreshed)
