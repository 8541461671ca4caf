"""An application for workers that are processes of their own: `WORKER_APP=tests.limits.app:app`."""

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.jobs import Ping, leave_effect
from worker.app import App
from worker.handler import Handler

GATE = 4711
"""The advisory lock that each job waits for."""


async def wait(_job: Ping, session: AsyncSession) -> None:
    await leave_effect(session)
    structlog.get_logger("test").warning("began")
    await session.execute(text("SELECT pg_advisory_xact_lock(:gate)"), {"gate": GATE})


app = App(handlers=(Handler(Ping, wait, max_concurrent=1),))
