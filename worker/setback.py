"""What an attempt that did not commit leaves behind: a failure, a snooze, a cancellation, in a transaction of its own."""

import traceback
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import run as ledger
from worker.availability import Availability
from worker.database import DatabaseAway
from worker.faults import is_lost_connection
from worker.outcome import BUSY, Cancelled, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, describe
from worker.retry import RetryPolicy

MAX_TRACEBACK = 20_000
"""Characters; the innermost frames stand at the end and are kept."""

Decision = Callable[[int], tuple[ledger.Move, Outcome]]
"""From the failures counted so far to where the run goes, and what that is called."""


def failed(error: BaseException, retry: RetryPolicy) -> Decision:
    """A failure: it is counted, and the policy says whether there is a next attempt."""
    trace = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:]
    told = describe(error)

    def decide(failures: int) -> tuple[ledger.Move, Outcome]:
        if retry.is_hopeless(error, failures + 1):
            return ledger.Move("dead", told, counts=True, traceback=trace), Dead(told)
        delay = retry.delay(failures + 1)
        return ledger.Move("retrying", told, delay, counts=True, traceback=trace), Retrying(delay, told)

    return decide


def snoozed(outcome: Snoozed, error: BaseException) -> Decision:
    """A wait that the handler asked for."""
    return lambda _: (ledger.Move("snoozed", describe(error), outcome.delay), outcome)


def cancelled(outcome: Cancelled) -> Decision:
    """An end that the handler or arq's abort asked for."""
    return lambda _: (ledger.Move("cancelled", outcome.reason), outcome)


class Setbacks:
    """Records them in the ledger."""

    def __init__(self, engine: AsyncEngine, availability: Availability, worker: str) -> None:
        """`worker` names this process beside the failures it met."""
        self._engine = engine
        self._availability = availability
        self._worker = worker

    async def record(self, run: ledger.Identity, message: bytes, seen: int | None, decide: Decision) -> Outcome:
        """Write down what was decided. `seen`: the failures that the attempt saw; None where it saw none, having not begun.

        Where the ledger can't be written just now, or somebody else has moved the run on, nothing counts.
        """
        try:
            async with self._engine.begin() as connection:
                failures = await ledger.failures(connection, run) if seen is None else seen
                move, outcome = decide(failures)
                if await ledger.move(connection, run, move, seen=failures, message=message, worker=self._worker):
                    return outcome
                ended = await ledger.look(connection, run)
        except (DBAPIError, DatabaseAway) as error:
            if is_lost_connection(error):
                await self._availability.check()
            return Released(f"the ledger can't be written ({type(error).__name__})", BUSY)
        return duplicate_of(ended) if ended else Released("another worker has taken it over", BUSY)


def duplicate_of(ended: ledger.Ended) -> Duplicate:
    """A delivery of a run that is final already."""
    if ended.status in {None, "completed"}:
        return Duplicate(ended.result)
    return Duplicate(None, failed=ended.error or ended.status)
