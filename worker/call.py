"""The handler, called: in its session, as its run, within its timeout. Whatever it raises is raised."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from worker.chunk import Chunk
from worker.delivery import Delivery
from worker.errors import JobTimeout
from worker.guard import Guard
from worker.handler import AnyHandler, ChunkedHandler
from worker.job import Job
from worker.run import Begun, Identity, Limits, current_of, running

BEYOND = timedelta(seconds=30)
"""How much longer than its handler a transaction may last before PostgreSQL ends it."""


@dataclass(slots=True)
class Work:
    """A job, and all that its transactions need."""

    run: Identity
    job: Job
    handler: AnyHandler
    delivery: Delivery
    message: bytes
    """As it stands in Redis; for the outbox row of a direct job that has to wait."""

    @property
    def limits(self) -> Limits:
        """What PostgreSQL holds its transactions to."""
        handler = self.handler
        return Limits(handler.statement_timeout, handler.lock_timeout, handler.timeout + BEYOND)


async def call(work: Work, begun: Begun, session: AsyncSession, guard: Guard) -> object:
    """What the handler returns, with all flushed that it left in its session.

    Raises JobTimeout, SessionMisuse, and whatever the handler raises.
    """
    timeout, hung = work.handler.timeout, None
    limit = asyncio.timeout(timeout.total_seconds())
    try:
        async with limit:
            with guard, running(current_of(work.run, begun)):
                returned = await _run(work, begun, session)
            if session.in_transaction() and (session.new or session.dirty or session.deleted):
                await session.flush()
        if not limit.expired():
            return returned
    except (TimeoutError, asyncio.CancelledError) as error:
        # In Python 3.11 a TaskGroup that failed leaves its task such that the timeout's cancellation stays one.
        if not limit.expired():
            raise
        hung = error
    # The handler may have swallowed it, too.
    raise JobTimeout(f"{work.run.name} ran longer than its timeout of {timeout}; raise it or do less.") from hung


async def _run(work: Work, begun: Begun, session: AsyncSession) -> object:
    handler = work.handler
    if isinstance(handler, ChunkedHandler):
        cursor = None if begun.cursor is None else handler.codec.validate_json(json.dumps(begun.cursor))
        return await handler.run(work.job, session, Chunk(cursor, handler.size))
    return await handler.run(work.job, session)
