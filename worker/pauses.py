"""Queues and job names that are held back. The truth is in PostgreSQL: a wiped Redis resumes nothing.

Each worker reads the table before its first claim, then whenever it is told of a change, and every second.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

import structlog
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.availability import Availability
from worker.brief import brief_connection
from worker.faults import is_expected, is_lost_connection
from worker.limits import Paused
from worker.reporting.observer import Observer

PAUSE_CHANNEL = "ratchet_pause"
READ_EVERY_S = 1.0

Kind: TypeAlias = Literal["queue", "name"]

_READ = text("select kind, name from worker.pause")
_PAUSE = text("insert into worker.pause (kind, name) values (:kind, :name) on conflict do nothing")
_RESUME = text("delete from worker.pause where kind = :kind and name = :name")
_TELL = text(f"select pg_notify('{PAUSE_CHANNEL}', '')")


class Pauses:
    """What is paused, as this worker knows it."""

    def __init__(self, engine: AsyncEngine, availability: Availability, observer: Observer) -> None:
        self._engine = engine
        self._availability = availability
        self._observer = observer
        self._known: Paused | None = None
        self._told = Paused()
        self._wake = asyncio.Event()
        self._log = structlog.get_logger("worker.pauses")

    def are_known(self) -> bool:
        """Whether the table could be read; nothing is claimed until then."""
        return self._known is not None

    def wake(self) -> None:
        """The table may have changed."""
        self._wake.set()

    async def run(self, changed: Callable[[Paused], None]) -> None:
        """Read until cancelled. Outlives PostgreSQL's absence.

        `changed` is told what is paused when that changes, and when it is known first, or again: from then on jobs may
        be claimed.
        """
        while True:
            self._wake.clear()
            was_known = self.are_known()
            try:
                self._known = await paused(self._engine)
            except Exception as error:  # noqa: BLE001 - it must go on; what is unexpected is reported
                await self._say(error)
            if self._known is not None and (self._known != self._told or not was_known):
                self._tell(self._known, changed)
            with suppress(TimeoutError):
                async with asyncio.timeout(READ_EVERY_S):
                    await self._wake.wait()

    def _tell(self, known: Paused, changed: Callable[[Paused], None]) -> None:
        if known != self._told:
            self._log.warning("paused", queues=sorted(known.queues), names=sorted(known.names))
        self._told = known
        changed(known)

    async def _say(self, error: Exception) -> None:
        if is_lost_connection(error):
            if not await self._availability.check():
                self._known = None
                await self._availability.wait()
                self.wake()
        elif not is_expected(error):
            self._observer.fault("pauses", error)


async def paused(engine: AsyncEngine) -> Paused:
    """What is paused now."""
    async with brief_connection(engine) as connection:
        rows = (await connection.execute(_READ)).all()
    return Paused(
        frozenset(row.name for row in rows if row.kind == "queue"),
        frozenset(row.name for row in rows if row.kind == "name"),
    )


async def pause(engine: AsyncEngine, kind: Kind, name: str) -> bool:
    """Hold a queue or a job name back. What runs goes on. False: it was paused already."""
    return await _change(engine, _PAUSE, kind, name)


async def resume(engine: AsyncEngine, kind: Kind, name: str) -> bool:
    """Let it go on. False: it wasn't paused."""
    return await _change(engine, _RESUME, kind, name)


async def _change(engine: AsyncEngine, change: TextClause, kind: Kind, name: str) -> bool:
    async with engine.begin() as connection:
        done = await connection.execute(change, {"kind": kind, "name": name})
        await connection.execute(_TELL)
    return done.rowcount == 1
