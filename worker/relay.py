"""The relay, in every worker: carries jobs from the outbox to Redis. Woken by NOTIFY, with a poll as the net."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.availability import Availability
from worker.epoch import current_epoch
from worker.faults import LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION, is_expected, is_lost_connection, sqlstate
from worker.push import LaneBatch, Pusher
from worker.reporting.observer import Observer
from worker.sweep import Sweep

OUTBOX_CHANNEL = "ratchet_outbox"
"""PostgreSQL's; `worker.enqueue`, in the first migration, has it too."""
ROUNDS = 20
"""Batches of each lane before a page of the sweep has its turn."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often the relay looks."""

    poll: timedelta = timedelta(seconds=1)
    sweep_every: timedelta = timedelta(seconds=30)
    """By one of all workers."""
    sweep_older: timedelta = timedelta(seconds=30)
    """What was sent less long ago is left, unless a push has failed or this worker is new."""
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
        intervals: Intervals | None = None,
    ) -> None:
        """`pushed` is told after each batch that reached Redis."""
        self._engine = engine
        self._redis = redis
        self._availability = availability
        self._observer = observer
        self._pushed = pushed
        self._intervals = intervals or Intervals()
        self._pusher = Pusher(engine, redis)
        self._sweep = Sweep(
            engine,
            redis,
            every=self._intervals.sweep_every,
            older=self._intervals.sweep_older,
            settle=self._intervals.settle,
        )
        self._wake = asyncio.Event()
        self._drains = asyncio.Lock()
        self._waiting = frozenset[str]()
        self._refused: dict[int, str] = {}
        """Rows (key and id) that Redis won't have yet, of a pass that isn't at its end."""
        self._has_trouble = False
        self.is_settling = False
        """Whether there is something to send again, once living workers have had their time after a wipe."""
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
            has_more = False
            try:
                sent, resent = await self.drain(), await self._sweep.step()
                self._tell(resent or 0)
                has_more = sent > 0 or resent is not None or bool(self._refused)
                self._has_trouble = False
            except Exception as error:  # noqa: BLE001 - the relay must go on; what is unexpected is reported
                await self._say(error)
            if not has_more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._intervals.poll.total_seconds()):
                        await self._wake.wait()

    async def drain(self) -> int:
        """Send what may be sent now, for as long as there is something; after ROUNDS batches others have their turn.

        The next call goes on behind what Redis refused, however much that is; at the end of the pass it is asked again.
        Returns how many jobs reached Redis. Callers wait for each other.
        """
        total = 0
        async with self._drains:
            try:
                for _ in range(ROUNDS):
                    batches = await self._batches(self._refused)
                    for batch in batches:
                        total += self._tell(batch.sent)
                        self._refused |= batch.refused
                    if not any(batch.found for batch in batches):
                        self._refused = {}
                        break
            except Exception as error:
                if not _is_contention(error):
                    self._sweep.want()
                raise
        return total

    async def _batches(self, refused: Mapping[int, str]) -> list[LaneBatch]:
        """One batch of each lane that has something, so that none starves another."""
        epoch = await current_epoch(self._engine, self._redis)
        skip = [str(seq) for seq in refused]
        # Most that there is to send is plain: it goes at once, and only the others are looked for.
        batches = [await self._pusher.send_plain(epoch.number, skip)]
        backlog = await self._pusher.look(epoch.number, skip)
        self._waiting = backlog.waiting.union(refused.values())
        if backlog.coalescing:
            batches.append(await self._pusher.send_coalescing(epoch.number, skip))
        self.is_settling = backlog.again and not epoch.has_settled(self._intervals.settle)
        if backlog.again and not self.is_settling:
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
