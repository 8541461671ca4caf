"""A worker's hold on its jobs, renewed by a thread of its own, so that a blocked event loop loses none of them."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from redis.exceptions import RedisError

from worker.broker import connect_blocking
from worker.claim import Claim

RENEWALS_PER_LEASE = 3

# A missing key was wiped: it is restored, so that a job which is sent again doesn't start twice. Another's token means
# that the lease was lost.
RENEW = """
local time = redis.call('TIME')
local lease = tonumber(ARGV[1])
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + lease
local lost = {}
for i = 2, #ARGV, 3 do
    local id, token, queue = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local held = redis.call('GET', 'arq:in-progress:' .. id)
    if held and held ~= token then
        lost[#lost + 1] = id
    else
        redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', lease)
        redis.call('ZADD', queue, 'XX', until_ms, id)
    end
end
return lost
"""


@dataclass(slots=True)
class _Held:
    claim: Claim
    deadline: float
    """time.monotonic() after which the lease isn't renewed any more."""


class Leases:
    """The leases of one process."""

    def __init__(self, redis_url: str, lease: timedelta, grace: timedelta, recycle: Callable[[], None]) -> None:
        """`grace`: how long beyond its timeout a job keeps its lease. `recycle` ends the process that such a job holds up."""
        self._redis_url = redis_url
        self._lease_ms = int(lease.total_seconds() * 1000)
        self._grace_s = grace.total_seconds()
        self._recycle = recycle
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewing = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="ratchet-leases", daemon=True)
        self._log = structlog.get_logger("worker.lease")

    @property
    def renew_every_s(self) -> float:
        """A third of the lease: two renewals may fail."""
        return self._lease_ms / 1000 / RENEWALS_PER_LEASE

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more. What is held then runs out."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def hold(self, claim: Claim) -> None:
        """Renew this one's lease from now on."""
        with self._lock:
            self._held[claim.job_id] = _Held(claim, time.monotonic() + self._grace_s)

    def extend(self, claim: Claim, timeout: timedelta) -> None:
        """A transaction begins that may take `timeout`."""
        with self._lock:
            if claim.job_id in self._held:
                self._held[claim.job_id].deadline = time.monotonic() + timeout.total_seconds() + self._grace_s

    async def drop(self, claim: Claim) -> None:
        """Renew this one no more; it is about to be settled.

        Waits for a renewal that is under way: it would take a settled job's missing key for one that was wiped.
        """
        with self._lock:
            held = self._held.get(claim.job_id)
            if held is not None and held.claim.token == claim.token:
                del self._held[claim.job_id]
        while self._renewing.is_set():
            await asyncio.sleep(0.001)

    def _renew_until_stopped(self) -> None:
        client = connect_blocking(self._redis_url)
        renew: Any = client.register_script(RENEW)
        away = False
        while not self._stop.wait(self.renew_every_s):
            self._renewing.set()
            live = self._split_overdue()
            try:
                arguments = [part for held in live for part in (held.claim.job_id, held.claim.token, held.claim.queue)]
                lost = renew(keys=[], args=[self._lease_ms, *arguments]) if live else []
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    self._log.warning("lease_not_renewed", reason=type(error).__name__, jobs=len(live))
                away = True
                continue
            finally:
                self._renewing.clear()
            for job_id in lost:
                self._log.warning(
                    "lease_lost",
                    job_id=job_id.decode(errors="backslashreplace"),
                    hint="another worker has it; the run's lock decides",
                )
        client.close()

    def _split_overdue(self) -> list[_Held]:
        """The leases to renew. A job that outlived its timeout and grace holds up the process, which is recycled."""
        with self._lock:
            held = list(self._held.values())
        now = time.monotonic()
        for overdue in (one for one in held if one.deadline < now):
            self._log.error(
                "job_overdue",
                job_id=overdue.claim.job_id,
                hint="it neither ended nor let itself be cancelled; the process ends",
            )
            self._recycle()
        return [one for one in held if one.deadline >= now]


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
