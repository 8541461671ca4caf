"""The relay, in every worker: carries jobs from the outbox to Redis. Woken by NOTIFY, with a poll as the net."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.availability import Availability
from worker.database import connect
from worker.epoch import current_epoch
from worker.faults import LOCK_NOT_AVAILABLE, is_expected, is_lost_connection, sqlstate
from worker.push import Batch, Pusher
from worker.reporting.observer import Observer
from worker.sweep import Sweep

CHANNEL = "ratchet_outbox"
LISTEN_AGAIN_S = 1.0
UNIQUE_VIOLATION = "23505"


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
        self._sweep = Sweep(
            engine, redis, every=self._pace.sweep_every, older=self._pace.sweep_older, settle=self._pace.settle
        )
        self._wake = asyncio.Event()
        self._drains = asyncio.Lock()
        self._waiting = frozenset[str]()
        self._has_trouble = False
        self._log = structlog.get_logger("worker.relay")

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def acknowledged(self, job_id: str) -> None:
        """A job has left Redis. Another of its id may wait for that."""
        if job_id in self._waiting:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled. Outlives both servers' absence."""
        while True:
            self._wake.clear()
            resent = None
            try:
                await self.drain()
                resent = await self._sweep.step()
                self._has_trouble = False
            except Exception as error:  # noqa: BLE001 - the relay must go on; what is unexpected is reported
                await self._say(error)
            if resent is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.poll.total_seconds()):
                        await self._wake.wait()
            else:
                self._tell(resent)  # and go on at once: the sweep has more pages

    async def drain(self) -> int:
        """Send everything that may be sent now. Returns how many jobs reached Redis. Callers take turns."""
        total, found, refused = 0, 1, dict[int, str]()
        async with self._drains:
            try:
                while found:
                    found = 0
                    for batch in await self._batches(refused):
                        found += batch.found
                        total += self._tell(batch.sent)
                        refused |= batch.refused
            except Exception as error:
                if not _is_contention(error):
                    self._sweep.want()
                raise
        return total

    async def _batches(self, refused: Mapping[int, str]) -> list[Batch]:
        """One batch of each lane that has something, so that none starves another."""
        epoch = await current_epoch(self._engine, self._redis)
        skip = list(refused)
        backlog = await self._pusher.look(epoch.number, skip)
        self._waiting = backlog.waiting.union(refused.values())
        batches: list[Batch] = []
        if backlog.plain:
            batches.append(await self._pusher.send_plain(epoch.number, skip))
        if backlog.coalescing:
            batches.append(await self._pusher.send_coalescing(epoch.number, skip))
        if backlog.again and epoch.has_settled(self._pace.settle):
            batches.append(await self._pusher.send_again(epoch.number, skip))
        return batches

    def _tell(self, sent: int) -> int:
        if sent:
            self._pushed()
        return sent

    async def _say(self, error: Exception) -> None:
        if _is_contention(error):
            return
        if is_lost_connection(error) and not await self._availability.check():
            await self._availability.wait()
        elif not isinstance(error, RedisError | OSError) and not is_expected(error):
            self._observer.fault("relay", error)
        elif not self._has_trouble:
            self._log.warning("relay_waits", reason=type(error).__name__)
        self._has_trouble = True


def _is_contention(error: Exception) -> bool:
    """Another relay has the turn, or was the first to send another job of an id. Nothing was marked."""
    return sqlstate(error) in {LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION}


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
