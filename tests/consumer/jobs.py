"""Jobs for workers in the test's own process. What they do is said by the handler that each test binds."""

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker.handler import Handler
from worker.job import Job
from worker.run import current_run, current_runs


class Ping(Job, name="ping"):
    """A job with next to nothing in it."""

    n: int = 0


class Pong(Job, name="pong"):
    """Another one."""

    n: int = 0


async def leave_effect(session: AsyncSession) -> None:
    """Leave one row in `effect` (see the fixture `effects`)."""
    await session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": current_run().job_id})


async def leave_effects(session: AsyncSession) -> None:
    """Leave one row for each job of a batch."""
    for run in current_runs():
        await session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": run.job_id})


async def answer(job: Ping, session: AsyncSession) -> dict[str, int]:
    await leave_effect(session)
    return {"n": job.n}


PING = Handler(Ping, answer)
"""Leaves an effect and answers with its number."""


def calling(function: Callable[[], object], **policy: Any) -> Handler[Ping]:
    """Leave an effect, then call `function` and await what it gives."""

    async def run(_job: Ping, session: AsyncSession) -> object:
        await leave_effect(session)
        value: Any = function()
        return await value if isawaitable(value) else value

    return Handler(Ping, run, **policy)


class Gate:
    """Where a handler waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self) -> str:
        self.reached.set()
        await self.opened.wait()
        return "opened"
