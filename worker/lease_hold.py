"""What a delivery knows of its claim, and may ask of the worker that holds it."""

from datetime import timedelta
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from worker.claim import Claim
from worker.engine import Engine

if TYPE_CHECKING:
    from worker.consumer import Worker


class LeaseHold:
    """A worker's hold on one claim (worker/delivery.py)."""

    __slots__ = ("_claim", "_engine", "_worker")

    def __init__(self, worker: "Worker", claim: Claim, engine: Engine) -> None:
        self._worker = worker
        self._claim = claim
        self._engine = engine

    async def is_ours(self) -> bool:
        try:
            return await self._engine.claims.is_held(self._engine.leases.current(self._claim))
        except (RedisError, OSError):
            return False

    def begins(self, timeout: timedelta) -> None:
        self._engine.leases.extend(self._claim, timeout)

    def is_stopping(self) -> bool:
        return self._worker.is_stopping()

    def is_aborted(self) -> bool:
        return self._claim.job_id in self._worker.aborting_tasks

    def tells_of_stops(self) -> bool:
        return True

    def shares_slot(self) -> None:
        self._worker.share_slot(self._claim)

    def takes_slot(self) -> None:
        self._worker.take_slot(self._claim)
