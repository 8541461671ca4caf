"""What came of deliveries, gathered for a moment and told to Redis in one go, by the holders of the tokens only.

A busy worker claims time and again, and what has ended goes along: one round trip instead of two.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial

import structlog
from redis.exceptions import RedisError

from worker.claim import Claim
from worker.claims import Claims
from worker.delivery import Report
from worker.endings import AT_ONCE, Along, Finish, PutBack
from worker.lease import Leases
from worker.settle import ending

GATHER_S = 0.01
"""While other jobs run. A job's slot is free at once, and its lease lasts much longer than this."""

Ended = tuple[Claim, Report]
Told = tuple[Claim, Report, Finish | PutBack]


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
        done: Callable[[], None],
        fault: Callable[[BaseException], None],
    ) -> None:
        """`is_busy`: whether it is worth a wait for more. `told` hears of each that Redis was told of.

        `done` is called when there is nothing to tell any more, `fault` with what nobody expected.
        """
        self._fault = fault
        self._claims = claims
        self._leases = leases
        self._keep_result = keep_result
        self._is_busy = is_busy
        self._told = told
        self._done = done
        self._ended: list[Ended] = []
        self._sending: asyncio.Task[None] | None = None
        self._landed = asyncio.Event()
        """Set while no claim carries any."""
        self._landed.set()
        self._log = structlog.get_logger("worker.consumer")

    def is_pending(self) -> bool:
        """Whether something is still to be told."""
        return self._sending is not None

    def add(self, claim: Claim, report: Report) -> None:
        """A job has ended. Its lease isn't renewed any more."""
        self._ended.append((self._leases.drop(claim), report))
        self._go_on()

    def hand_over(self) -> Along | None:
        """What is to be told now, for a claim that goes to Redis anyway. None: nothing, or another carries some."""
        if not self._ended or not self._landed.is_set() or self._leases.are_being_renewed():
            return None
        told = list(self._in_words(self._next_part()))
        if not told:
            return None
        self._landed.clear()
        return Along([words for _, _, words in told], partial(self._have_gone, told))

    async def all_sent(self) -> None:
        """Wait until there is nothing to tell."""
        while self._sending is not None:
            await asyncio.wait((self._sending,))

    def _next_part(self) -> list[Ended]:
        """As many as one script call takes: what is told of one part stays told if the next one can't be."""
        part, self._ended = self._ended[:AT_ONCE], self._ended[AT_ONCE:]
        return part

    def _go_on(self) -> None:
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all(), name="acknowledgements")

    async def _send_all(self) -> None:
        try:
            while self._ended or not self._landed.is_set():
                if self._is_busy():
                    await asyncio.sleep(GATHER_S)
                await self._landed.wait()
                try:
                    await self._send(self._next_part())
                except Exception as error:  # noqa: BLE001 - one job's fault is no other's
                    self._fault(error)
        finally:
            self._sending = None
            self._done()

    async def _send(self, ended: Sequence[Ended]) -> None:
        if not ended:
            return
        await self._leases.renewed()
        told = list(self._in_words(ended))
        try:
            settled = await self._claims.settle([words for _, _, words in told])
        except (RedisError, OSError) as error:
            self._say_not_told(told, error)
        else:
            self._say_told(told, settled)

    def _have_gone(self, told: Sequence[Told], settled: list[bool] | BaseException) -> None:
        """What came of those that went with a claim, whose jobs no fault of ours may cost it."""
        self._landed.set()
        try:
            self._hear(told, settled)
        except Exception as error:  # noqa: BLE001 - as above
            self._fault(error)

    def _hear(self, told: Sequence[Told], settled: list[bool] | BaseException) -> None:
        if isinstance(settled, asyncio.CancelledError):  # the worker stops, and they may not have left
            self._ended += [(claim, report) for claim, report, _ in told]
            self._go_on()
        elif isinstance(settled, BaseException):
            self._say_not_told(told, settled)
        else:
            self._say_told(told, settled)

    def _say_not_told(self, told: Sequence[Told], error: BaseException) -> None:
        hint = "they are delivered again; what was done is a duplicate then"
        ids = [claim.job_id for claim, _, _ in told]
        self._log.warning("not_acknowledged", job_ids=ids, reason=type(error).__name__, hint=hint)

    def _say_told(self, told: Sequence[Told], settled: Sequence[bool]) -> None:
        for (claim, report, _), is_settled in zip(told, settled, strict=True):
            self._told(report, claim)
            if not is_settled:
                outcome = type(report.outcome).__name__.lower()
                self._log.warning("lease_was_lost", job_id=claim.job_id, outcome=outcome)

    def _in_words(self, ended: Sequence[Ended]) -> Iterator[Told]:
        """Each with what to tell of it. One that can't be put into words is left out, and so to its lease."""
        for claim, report in ended:
            try:
                words = ending(claim, report, self._keep_result)
            except Exception as error:  # noqa: BLE001 - one job's fault is no other's
                self._fault(error)
            else:
                yield claim, report, words
