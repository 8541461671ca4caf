"""What came of deliveries, gathered for a moment and told to Redis in one go, by the holders of the tokens only."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import structlog
from redis.exceptions import RedisError

from worker.claim import Claim, Claims, Finish, PutBack
from worker.delivery import Report
from worker.lease import Leases
from worker.settle import ending

GATHER_S = 0.01
"""While other jobs run. A job's slot is free at once, and its lease lasts much longer than this."""

Ended = tuple[Claim, Report]


class Acknowledgements:
    """Of one worker. Each is told after its commit; what can't be told is left to the lease.

    Then the job is delivered again, and is a Duplicate.
    """

    def __init__(
        self,
        claims: Claims,
        leases: Leases,
        keep_result: timedelta,
        *,
        is_busy: Callable[[], bool],
        told: Callable[[Report, Claim], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """`is_busy`: whether it is worth a wait for more. `told` hears of each that reached Redis.

        `fault` hears what nobody expected.
        """
        self._fault = fault
        self._claims = claims
        self._leases = leases
        self._keep_result = keep_result
        self._is_busy = is_busy
        self._told = told
        self._ended: list[Ended] = []
        self._sending: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("worker.consumer")

    def is_pending(self) -> bool:
        """Whether something is still to be told."""
        return self._sending is not None

    def add(self, claim: Claim, report: Report) -> None:
        """A job has ended. Its lease isn't renewed any more."""
        self._ended.append((self._leases.drop(claim), report))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all(), name="acknowledgements")

    async def all_sent(self) -> None:
        """Wait until there is nothing to tell."""
        while self._sending is not None:
            await asyncio.wait((self._sending,))

    async def _send_all(self) -> None:
        try:
            while self._ended:
                if self._is_busy():
                    await asyncio.sleep(GATHER_S)
                ended, self._ended = self._ended, []
                try:
                    await self._send(ended)
                except Exception as error:  # noqa: BLE001 - one job's fault is no other's
                    self._fault(error)
        finally:
            self._sending = None

    async def _send(self, ended: Sequence[Ended]) -> None:
        await self._leases.renewed()
        told = list(self._in_words(ended))
        try:
            settled = await self._claims.settle([words for _, _, words in told])
        except (RedisError, OSError) as error:
            hint = "they are delivered again; what was done is a duplicate then"
            ids = [claim.job_id for claim, _, _ in told]
            self._log.warning("not_acknowledged", job_ids=ids, reason=type(error).__name__, hint=hint)
            return
        for (claim, report, _), is_settled in zip(told, settled, strict=True):
            self._told(report, claim)
            if not is_settled:
                outcome = type(report.outcome).__name__.lower()
                self._log.warning("lease_was_lost", job_id=claim.job_id, outcome=outcome)

    def _in_words(self, ended: Sequence[Ended]) -> Iterator[tuple[Claim, Report, Finish | PutBack]]:
        """Each with what to tell of it. One that can't be put into words is left out, and so to its lease."""
        for claim, report in ended:
            try:
                words = ending(claim, report, self._keep_result)
            except Exception as error:  # noqa: BLE001 - one job's fault is no other's
                self._fault(error)
            else:
                yield claim, report, words
