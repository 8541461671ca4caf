"""Whether PostgreSQL can be reached and takes writes. While it doesn't, nothing is claimed and nothing counts."""

import asyncio

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.brief import brief_connection
from worker.database import DatabaseAway
from worker.faults import is_lost_connection

RETRY_FROM_S, RETRY_UP_TO_S = 0.1, 2.0


class Availability:
    """Known to be up, or away and being tried again. Says each change once."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._up = asyncio.Event()
        self._up.set()
        self._search: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("worker.availability")

    def is_up(self) -> bool:
        """Whether PostgreSQL was there when last used."""
        return self._up.is_set()

    async def check(self) -> bool:
        """Try now. Starts the search where it fails."""
        try:
            await self._probe()
        except PoolTimeout:  # nobody gave one back in time, which says nothing about the server
            return True
        except Exception as error:  # noqa: BLE001 - whatever it is, we have no connection
            self._lost(error)
            return False
        return True

    async def wait(self) -> None:
        """Until PostgreSQL is there."""
        await self._up.wait()

    def _lost(self, error: Exception) -> None:
        if self._search is None:
            self._up.clear()
            reason = str(error) if isinstance(error, DatabaseAway) else type(error).__name__
            self._log.warning("database_away", reason=reason, hint="nothing is claimed until it is back")
            self._search = asyncio.create_task(self._find(), name="availability")

    async def _find(self) -> None:
        delay = RETRY_FROM_S
        while True:
            await asyncio.sleep(delay)
            try:
                await self._probe()
            except Exception as error:  # noqa: BLE001 - see check
                if not is_lost_connection(error):
                    self._log.debug("database_probe_failed", error=type(error).__name__)
                delay = min(RETRY_UP_TO_S, delay * 2)
                continue
            break
        self._log.warning("database_back")
        self._search = None
        self._up.set()

    async def _probe(self) -> None:
        """Raises where it can't be reached, or takes no writes.

        A pooled connection may have died with the server; that empties the pool, and the next one is new.
        """
        try:
            await self._ask()
        except DBAPIError:
            await self._ask()

    async def _ask(self) -> None:
        async with brief_connection(self._engine) as connection:
            is_read_only = (await connection.execute(text("show transaction_read_only"))).scalar_one() == "on"
            if is_read_only:
                # What it was set to when it connected may have changed. Closed without a greenlet, and so at once.
                connection.sync_connection.invalidate()  # type: ignore[union-attr]  # it is connected
                raise DatabaseAway(PermissionError("it takes no writes just now (default_transaction_read_only)"))

    async def close(self) -> None:
        """End the search, if there is one."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
