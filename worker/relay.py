"""The relay, in every worker: carries committed jobs from the outbox to Redis. Woken by NOTIFY, with a poll as the net."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.availability import Availability
from worker.database import connect
from worker.epoch import current_epoch
from worker.faults import is_expected, is_lost_connection
from worker.push import BATCH, Pusher
from worker.reporting.observer import Observer

CHANNEL = "ratchet_outbox"
LISTEN_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the relay looks."""

    poll: timedelta = timedelta(seconds=1)
    sweep_every: timedelta = timedelta(seconds=30)
    sweep_older: timedelta = timedelta(seconds=30)
    settle: timedelta = timedelta(seconds=5)
    """After a wipe: one renewal, in which living workers restore the in-progress keys of what they run."""


class Relay:
    """One process's relay."""

    def __init__(
        self,
        engine: AsyncEngine,
        redis: Redis,
        availability: Availability,
        observer: Observer,
        *,
        pushed: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:
        """`pushed` is told after each batch that reached Redis."""
        self._engine = engine
        self._redis = redis
        self._availability = availability
        self._observer = observer
        self._pushed = pushed
        self._pace = pace or Pace()
        self._pusher = Pusher(engine, redis)
        self._wake = asyncio.Event()
        self._has_waiting = False
        self._next_sweep = 0.0
        self._had_trouble = True
        self._log = structlog.get_logger("worker.relay")

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def acknowledged(self) -> None:
        """A job has left Redis; another of its id may be waiting for that."""
        if self._has_waiting:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. Outlives both servers' absence."""
        while True:
            self._wake.clear()
            try:
                await self.drain()
                await self._sweep_if_due()
            except Exception as error:  # noqa: BLE001 - the relay must go on; what is unexpected is reported
                await self._say(error)
            else:
                self._had_trouble = False
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll.total_seconds()):
                    await self._wake.wait()

    async def drain(self) -> int:
        """Send everything that may be sent now. Returns how many jobs reached Redis."""
        epoch = await current_epoch(self._engine, self._redis)
        total, self._has_waiting = 0, False
        for send in (self._pusher.send_plain, self._pusher.send_coalescing):
            while True:
                sent, waiting = await send(epoch.number)
                self._has_waiting |= waiting
                total += self._told(sent)
                if sent < BATCH:
                    break
        if epoch.raised_at is None or datetime.now(UTC) - epoch.raised_at >= self._pace.settle:
            while sent := await self._pusher.send_again(epoch.number):
                total += self._told(sent)
        return total

    def _told(self, sent: int) -> int:
        if sent:
            self._pushed()
        return sent

    async def _sweep_if_due(self) -> None:
        """Regularly; and at once after trouble, which may have kept from Redis what is marked as sent."""
        if not self._had_trouble and time.monotonic() < self._next_sweep:
            return
        older = timedelta(0) if self._had_trouble else self._pace.sweep_older
        self._told(await self._pusher.sweep(older))
        self._next_sweep = time.monotonic() + self._pace.sweep_every.total_seconds()

    async def _say(self, error: Exception) -> None:
        if is_lost_connection(error) and not await self._availability.check():
            await self._availability.wait()
        elif not isinstance(error, RedisError | OSError) and not is_expected(error):
            self._observer.fault("relay", error)
        elif not self._had_trouble:
            self._log.warning("relay_waits", reason=type(error).__name__)
        self._had_trouble = True


async def listen(url: str, wake: Callable[[], None], application: str) -> None:
    """Call `wake` whenever a transaction that enqueued has committed. Reconnects for ever; ends when cancelled."""

    def on_notify(*_: Any) -> None:
        wake()

    while True:
        with suppress(Exception):  # away or refusing: the relay's poll is the net, and says so
            connection = await connect(url, application)
            ended = asyncio.Event()
            try:
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                await connection.add_listener(CHANNEL, on_notify)
                wake()
                await ended.wait()
            finally:
                connection.terminate()
        await asyncio.sleep(LISTEN_AGAIN_S)
