"""A worker's hold on its jobs, renewed by a thread of its own, so that a blocked event loop loses none of them."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from redis import Redis as BlockingRedis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError, ResponseError

from worker.broker import connect_blocking
from worker.claim import Claim
from worker.lease_script import RENEW, RESTORE
from worker.settle_script import RETRY_KEY_TTL_S

RENEWALS_PER_LEASE = 3
RETRY_KEY = b"arq:retry:"
AWAY_RETRY_S = 0.25
"""Between tries while Redis is away."""
STALL_S = 1.0
"""Who looks later than this was stopped or starved, and so was what it looks after, which has yet to use its time."""


@dataclass(slots=True)
class _Lease:
    claim: Claim
    deadline: float
    """time.monotonic() after which the lease isn't renewed any more."""
    said: bool = False
    """That it was lost, or that its job is overdue."""
    counted: bool = False
    """That its job has used up a try."""


class Leases:
    """The leases of one process."""

    def __init__(
        self,
        redis: AsyncRedis | str,
        lease: timedelta,
        grace: timedelta,
        *,
        recycle: Callable[[], None],
        fault: Callable[[BaseException], None],
        counts_tries: bool = False,
    ) -> None:
        """`redis`: the server's URL, or a client of it.

        `grace`: how long beyond its timeout a job keeps its lease. `counts_tries`: one that exceeds it has used up a
        try, as Redis counts them; where nothing else counts, it would hold up one process after the other.

        `recycle` ends the process that such a job holds up. `fault` is told what nobody expected.
        Both are called in the thread.
        """
        self._redis = redis
        self._lease_ms = int(lease.total_seconds() * 1000)
        self._grace_s = grace.total_seconds()
        self._recycle = recycle
        self._fault = fault
        self._counts_tries = counts_tries
        # Both threads use it, without a lock: each thing that is done to it is one step of the interpreter,
        # and of a deadline that both move at once either may stand.
        self._held: dict[bytes, _Lease] = {}
        self._stop = threading.Event()
        self._renewing = threading.Event()
        self._away = False
        self.are_overdue = False
        """Whether a job outlived its timeout and its grace."""
        self._thread: threading.Thread | None = None
        self._log = structlog.get_logger("worker.lease")

    @property
    def renew_every_s(self) -> float:
        """A third of the lease: one renewal may fail."""
        return self._lease_ms / 1000 / RENEWALS_PER_LEASE

    def start(self) -> None:
        """Begin to renew."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="ratchet-leases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Renew no more. What is held then runs out."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def hold(self, claim: Claim) -> None:
        """Renew this one's lease from now on."""
        self._held[claim.raw_id] = _Lease(claim, time.monotonic() + self._grace_s)

    def extend(self, claim: Claim, timeout: timedelta) -> None:
        """A transaction begins that may take `timeout`."""
        held = self._held.get(claim.raw_id)
        if held is not None:
            held.deadline = time.monotonic() + timeout.total_seconds() + self._grace_s

    def take_over(self, claim: Claim) -> bool:
        """A lease had run out, and its job, which still runs here, was claimed anew: renew that claim from now on.

        False: it is another job of the same id, or the one that ran here is about to be settled.
        """
        held = self._held.get(claim.raw_id)
        if held is None or held.claim.message != claim.message:
            return False
        held.claim = claim
        return True

    def drop(self, claim: Claim) -> Claim:
        """Renew this one no more; it is about to be settled. Returns the claim that it is held by."""
        held = self._held.pop(claim.raw_id, None)
        return held.claim if held else claim

    def current(self, claim: Claim) -> Claim:
        """The claim that this job is held by now."""
        held = self._held.get(claim.raw_id)
        return held.claim if held else claim

    def are_being_renewed(self) -> bool:
        """Whether a renewal is under way."""
        return self._renewing.is_set()

    async def renewed(self) -> None:
        """Wait for a renewal that is under way: it would take a settled job's missing key for one that was wiped."""
        while self._renewing.is_set():  # noqa: ASYNC110 - a thread's event, set for a millisecond in five seconds
            await asyncio.sleep(0.001)

    def _renew_until_stopped(self) -> None:
        # A server that doesn't answer is given up early enough for another renewal within the lease.
        client = connect_blocking(self._redis, timeout=self.renew_every_s / 2)
        renew: Any = client.register_script(RENEW)  # sends nothing yet
        restore: Any = client.register_script(RESTORE)
        due = time.monotonic() + self.renew_every_s
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._forgive(time.monotonic() - due)
            due = time.monotonic() + self.renew_every_s
            self._renewing.set()
            try:
                self._renew(client, renew, restore)
            except (RedisError, OSError) as error:
                if not self._away:
                    self._log.warning(
                        "leases_not_renewed", reason=f"{type(error).__name__}: {error}", hint="trying again"
                    )
                self._away = True
                client.connection_pool.disconnect()  # the address may lead elsewhere by now
            except Exception as error:  # noqa: BLE001 - the thread must go on: all jobs hang on it
                self._fault(error)
            finally:
                self._renewing.clear()
            if self._away:
                # Leases may have run out meanwhile. Renewed at once, they are ours again before anybody claims.
                due = time.monotonic() + min(AWAY_RETRY_S, self.renew_every_s)
        client.close()

    def _forgive(self, stalled_s: float) -> None:
        if stalled_s > STALL_S:
            for held in list(self._held.values()):
                held.deadline += stalled_s

    def _renew(self, client: BlockingRedis, renew: Any, restore: Any) -> None:
        held = list(self._held.values())
        now = time.monotonic()
        overdue = [one for one in held if one.deadline < now]
        for one in overdue:
            self._say(one, "job_overdue", "it neither ended nor let itself be cancelled; the process ends")
        if overdue:
            self.are_overdue = True
            self._recycle()
        live = [one for one in held if one.deadline >= now]
        if live:
            arguments = [part for one in live for part in _arguments(one.claim)]
            told: tuple[list[int], list[int]] = renew(keys=[], args=[self._lease_ms, *arguments])
            lost, missing = told
            self._say_lost([live[place - 1] for place in lost])
            if missing:
                self._restore(restore, [live[place - 1] for place in missing])
        if self._counts_tries and overdue:
            with suppress(ResponseError):  # a full Redis takes none: with the next renewal
                _count_tries(client, overdue)
        self._away = False

    def _restore(self, restore: Any, missing: Sequence[_Lease]) -> None:
        arguments: list[bytes | str] = []
        for one in missing:
            one.claim.is_restored = True  # before it is: a settling that comes first finds no key of ours
            arguments += (*_arguments(one.claim), one.claim.digest())
        lost: list[int] = restore(keys=[], args=[self._lease_ms, *arguments])
        self._say_lost([missing[place - 1] for place in lost])

    def _say_lost(self, lost: Sequence[_Lease]) -> None:
        for one in lost:
            self._say(one, "lease_lost", "another worker has it; the run's lock decides")

    def _say(self, one: _Lease, event: str, hint: str) -> None:
        """Once a job."""
        if not one.said:
            self._log.warning(event, job_id=one.claim.job_id, hint=hint)
        one.said = True


def _count_tries(client: BlockingRedis, overdue: Sequence[_Lease]) -> None:
    """Once a job. Where it still ends, what comes of it replaces the number."""
    for one in overdue:
        if not one.counted:
            with client.pipeline() as pipe:
                pipe.incr(RETRY_KEY + one.claim.raw_id)
                pipe.expire(RETRY_KEY + one.claim.raw_id, RETRY_KEY_TTL_S)
                pipe.execute()
            one.counted = True


def _arguments(claim: Claim) -> tuple[bytes | str, ...]:
    """What RENEW takes of one job."""
    return claim.raw_id, claim.token, claim.queue, claim.limited


def end_this_process(grace: timedelta) -> Callable[[], None]:
    """Ask for an orderly stop; where the loop doesn't answer within `grace`, end at once. The leases do the rest."""
    asked: list[float] = []

    def recycle() -> None:
        if not asked:
            asked.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() - asked[0] > grace.total_seconds():
            os._exit(os.EX_SOFTWARE)

    return recycle
