"""Taking due jobs from Redis, and giving them back. Each is one script: it happens whole or not at all.

The scripts build key names from ids, which a single Redis allows and Redis Cluster does not.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, repeat
from math import inf, isfinite
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from worker import scripts
from worker.claim_script import CLAIM, PAGE, PAGES, STEP
from worker.limits import Limits
from worker.settle_script import SETTLE
from worker.wake import IDLE_MS
from worker.wire import IN_PROGRESS_KEY, MAX_MESSAGE_BYTES

MAX_ID_BYTES = 1_000
"""Of an id in the ledger, whose index takes no more than 2,704 bytes."""
MARK_AGAIN_S = 10.0
"""An idle worker looks in earnest so often, though nothing seems due: the idle marks must not run out."""
NEVER = inf
FOREVER = -1
"""Of a result: kept until somebody deletes it."""
AT_ONCE = 1_000
"""Endings a script call: Lua unpacks no more than some 8,000 values."""


@dataclass(slots=True)
class Claim:
    """A job that this worker holds."""

    job_id: str
    """The id as the ledger and the logs know it."""
    raw_id: bytes
    """The id as it stands in Redis: any bytes at all."""
    queue: str
    token: str
    """What stands in its in-progress key: who holds it, and when it was due."""
    message: bytes | None
    due_ms: int
    claimed_ms: int
    """Redis's time."""
    failures: int
    aborted: bool
    limited: str = ""
    """The name whose permit it holds, where that is limited."""
    is_suspect: bool = False
    """It is taken from a lease that ran out, so the process that had it may have died of it."""
    is_restored: bool = False
    """Its in-progress key was gone for a while: there may be another job of its id by now."""

    def digest(self) -> bytes:
        """By which its message is known, in hexadecimal: SHA-1, as Redis's scripts have it."""
        return hashlib.sha1(self.message or b"", usedforsecurity=False).hexdigest().encode()


@dataclass(slots=True)
class Finish:
    """Take the job out of Redis and keep its result for so long; 0: keep none; FOREVER."""

    claim: Claim
    result: bytes = b""
    keep_ms: int = 0
    stays_ms: int = 0
    """How long the id stays in progress nevertheless."""


@dataclass(slots=True)
class PutBack:
    """Offer the job again after `delay`; zero: behind all that is due. None: at its old place."""

    claim: Claim
    delay: timedelta | None = None
    adopted: bytes | None = None
    """Replaces the message."""
    failures: int | None = None
    """What Redis counts from now on; None: as before."""
    stays_ms: int = 0
    """As Finish's."""
    cleared: bool = False
    """Whether a suspect is none any more. Else whoever takes it next is told that it is one."""


@dataclass(frozen=True, slots=True)
class Along:
    """What goes to Redis with a claim, instead of by itself."""

    endings: Sequence[Finish | PutBack]
    """At most AT_ONCE."""
    told: Callable[[list[bool] | BaseException], None]
    """Called once, with what `settle` would return or raise; an error of the connection means that nothing is known."""


def _nothing() -> Along | None:
    return None


_CLAIM, _SETTLE = scripts.Script(CLAIM), scripts.Script(SETTLE)


class Claims:
    """The scripts, bound to a client."""

    def __init__(
        self, redis: Redis, lease: timedelta, limits: Limits | None = None, *, marks_idle: bool = True
    ) -> None:
        """`lease`: how long a claimed job is held unless that is renewed. `limits`: what may not start now.

        `marks_idle`: somebody listens, and should be woken.
        """
        self._redis = redis
        self._lease_ms = int(lease.total_seconds() * 1000)
        self._limits = limits or Limits()
        self._idle_ms = IDLE_MS if marks_idle else 0
        self._passed: dict[str, int] = {}
        self._heads: dict[str, float] = {}
        """When the earliest job of a queue is due, as the looks since the last claim have seen it."""
        self._looks = 0
        self._reopens_ms: int | None = None
        """When what is parked may start, as far as the last claim could tell."""
        self.has_more = False
        """Whether the last claim stopped before the end of what is due: it was full, or its messages were large."""
        self.are_aborts = True
        """Whether some job's abort may have been asked for, as the last claim saw it."""
        self._clock: Clock | None = None

    async def look(self, queues: Sequence[str]) -> float | None:
        """Milliseconds until the earliest job of `queues` may start, at most 0 where one may; None: none is known of.

        The first look after a claim asks each queue for its earliest, later ones a queue in turn: one cheap command,
        however many queues there are. Says 0 too where only a claim can tell: before the first, and so often that the
        idle marks stay. A job that a stock arq worker holds looks due.
        """
        if self._clock is None or self._clock.age_s() > MARK_AGAIN_S:
            return 0
        queues = self._limits.open(queues)
        unseen = [queue for queue in queues if queue not in self._heads]
        self._looks += 1
        await self._ask(unseen or [queues[self._looks % len(queues)]] if queues else [])
        due = [self._heads[queue] for queue in queues]
        if self._reopens_ms is not None:
            due.append(self._reopens_ms)
        first = min(due, default=NEVER)
        return None if first == NEVER else first - self._clock.now_ms()

    async def _ask(self, queues: Sequence[str]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(queue, 0, 0, withscores=True)
            heads: list[list[tuple[bytes, float]]] = await pipe.execute()
        self._heads |= {queue: head[0][1] if head else NEVER for queue, head in zip(queues, heads, strict=True)}

    async def take(
        self, queues: Sequence[str], want: int, token: str, along: Callable[[], Along | None] = _nothing
    ) -> list[Claim]:
        """Up to `want` due jobs, oldest first: all of the first queue, then of the second, and so on.

        Where that leaves slots free, the queues are marked as idle, and who adds to them tells CHANNEL. Queues that are
        paused are left out, and so are jobs whose name is paused or at its limit.

        `along`: asked for what goes along in the same round trip, and is settled first.
        """
        self.are_aborts = True
        queues = self._limits.open(queues)
        if want <= 0 or not queues:
            self.has_more = False
            return []
        parked = 1
        claims: list[Claim] = []
        while parked and not claims:  # behind what it parked there may be more
            parked, claims = await self._take(queues, want, token, along())
        return claims

    async def _take(self, queues: Sequence[str], want: int, token: str, along: Along | None) -> tuple[int, list[Claim]]:
        args = [want, self._lease_ms, token, MAX_MESSAGE_BYTES, PAGE, PAGES, STEP, self._idle_ms]
        behind = [self._passed.get(queue, 0) for queue in queues]
        claim = scripts.Call(_CLAIM, queues, [*args, *behind, *self._limits.arguments()])
        told: Any = await (scripts.run(self._redis, claim) if along is None else self._with(along, claim))
        now, parked, full, self._reopens_ms, self.are_aborts, passed, counts, *columns = told
        self._heads = {}
        self._clock = Clock(now, time.monotonic())
        self.has_more = full == 1
        self._passed.update(zip(queues, passed, strict=True))
        sources = chain.from_iterable(map(repeat, queues, counts))
        return parked, [
            Claim(
                readable_id(raw_id),
                raw_id,
                queue,
                f"{token}:{score.decode()}",
                message,
                _due_ms(score),
                now,
                _count(failures),
                aborted == 1,
                limited.decode(),
                suspect == 1,
            )
            for queue, raw_id, score, message, failures, aborted, limited, suspect in zip(
                sources, *columns, strict=True
            )
        ]

    async def _with(self, along: Along, claim: scripts.Call) -> Any:
        """What `claim` answers. Raises as scripts.run does."""
        try:
            settled, told = await scripts.run_all(self._redis, _settling(along.endings), claim)
        except BaseException as error:
            along.told(error)
            raise
        along.told(settled if isinstance(settled, ResponseError) else [done == 1 for done in settled])
        if isinstance(told, ResponseError):
            raise told
        return told

    async def is_held(self, claim: Claim) -> bool:
        """Whether the job's in-progress key still carries this claim's token."""
        held: bytes | None = await self._redis.get(IN_PROGRESS_KEY.encode() + claim.raw_id)
        return held == claim.token.encode()

    async def settle(self, endings: Sequence[Finish | PutBack]) -> list[bool]:
        """Tell Redis what came of jobs, in one round trip for each 1,000.

        False: that one's lease was lost, and nothing was told.
        """
        settled: list[int] = []
        for start in range(0, len(endings), AT_ONCE):
            part = endings[start : start + AT_ONCE]
            settled += await scripts.run(self._redis, _settling(part))
        return [done == 1 for done in settled]


@dataclass(frozen=True, slots=True)
class Clock:
    """Redis's, as the last claim told it."""

    told_ms: int
    at_s: float
    """time.monotonic() then."""

    def age_s(self) -> float:
        """How long ago that was."""
        return time.monotonic() - self.at_s

    def now_ms(self) -> float:
        """Redis's time, late by the way of the answer."""
        return self.told_ms + self.age_s() * 1000


def _settling(endings: Sequence[Finish | PutBack]) -> scripts.Call:
    return scripts.Call(_SETTLE, (), [value for ending in endings for value in _arguments(ending)])


def _arguments(ending: Finish | PutBack) -> tuple[Any, ...]:
    """What SETTLE takes of one ending."""
    claim, how = ending.claim, _how(ending)
    return claim.queue, claim.raw_id, claim.token, b"only %b %b" % (claim.digest(), how) if claim.is_restored else how


def _how(ending: Finish | PutBack) -> bytes:
    claim = ending.claim
    limited = claim.limited.encode()
    if isinstance(ending, Finish):
        had_message = claim.message is not None
        return b"finish %d %d %d %b %b" % (ending.stays_ms, ending.keep_ms, had_message, limited, ending.result)
    failures = claim.failures if ending.failures is None else ending.failures
    adopted = ending.adopted or b""
    if claim.is_suspect and not ending.cleared:
        delay_ms = math.ceil((ending.delay or timedelta(0)).total_seconds() * 1000)
        return b"suspect %d %d %d %b %b" % (ending.stays_ms, delay_ms, failures, limited, adopted)
    if ending.delay is not None:
        delay_ms = math.ceil(ending.delay.total_seconds() * 1000)
        return b"later %d %d %d %b %b" % (ending.stays_ms, delay_ms, failures, limited, adopted)
    return b"now %d %d %d %b %b" % (ending.stays_ms, claim.due_ms, failures, limited, adopted)


def readable_id(raw_id: bytes) -> str:
    """`raw_id` as PostgreSQL's text takes it: itself, unless it isn't UTF-8, holds NUL, or is overlong."""
    text = raw_id.decode("utf-8", "backslashreplace").replace("\0", "\\0")
    if len(text) <= MAX_ID_BYTES and (text.isascii() or len(text.encode()) <= MAX_ID_BYTES):
        return text
    return f"{text[:100]}…{hashlib.sha256(raw_id).hexdigest()}"


def _due_ms(score: bytes) -> int:
    if score.isdigit():
        return int(score)
    value = float(score)
    return int(max(0.0, value)) if isfinite(value) else 0


def _count(failures: bytes | None) -> int:
    return int(failures) if failures and failures.isdigit() and len(failures) < 10 else 0  # noqa: PLR2004 - digits
