"""One attempt: transaction after transaction of a job until there is an outcome. What a job raises is judged here."""

import asyncio
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never

from sqlalchemy.ext.asyncio import AsyncEngine

from worker import ledger
from worker.availability import Availability
from worker.batch_transaction import BatchTransactor
from worker.brakes import Brakes, Held
from worker.call import Work
from worker.errors import LONGEST_DELAY, Cancel, SelfCancelled, Snooze
from worker.faults import FateUnknown, LedgerBusy, is_conflict, is_lost_connection, is_pool_empty, plainly
from worker.guard import Guard
from worker.handler import ChunkedHandler, keeps_run
from worker.outcome import BUSY, Cancelled, Completed, Outcome, Released, Retrying, Snoozed, Yielded
from worker.pressure import Ceiling
from worker.reporting.observer import Observation
from worker.setback import Decision, Setbacks, cancelled, duplicate_of, failed, held_back, snoozed
from worker.shield import cancellations, is_cancelled, to_its_end
from worker.transaction import Transactor
from worker.unkept import UnkeptTransactor

IMMEDIATE_RETRIES = 3
"""For conflicts and lost connections, before they count as a failure."""
TO_THE_END = timedelta(0)


Done = Completed | Yielded | Released | Held | Cancelled | ledger.Ended | ledger.NotDue
"""What one transaction comes to, if it raises nothing."""


@dataclass(slots=True)
class Settled:
    """How a delivery was settled in PostgreSQL."""

    outcome: Outcome
    error: BaseException | None = None
    attempt: int = 1
    adopted: bool = False
    """Whether a job that came straight from Redis has an outbox row now."""
    has_begun: bool = True
    """False: the handler wasn't called."""


class Crew:
    """What every attempt of a process works with."""

    def __init__(self, engine: AsyncEngine, availability: Availability, worker: str, ceiling: Ceiling) -> None:
        self.availability = availability
        self.setbacks = Setbacks(engine, availability, worker)
        self.brakes = Brakes(engine, ceiling)
        self.kept = Transactor(engine)
        self.many = BatchTransactor(engine)
        self.unkept = UnkeptTransactor(engine)


class Attempt:
    """Of one delivery: its chunks, and the immediate retries of each."""

    _seen: ledger.Seen | None = None
    """What the last transaction saw of the run when it began."""
    _has_begun = False
    _retries = 0
    _fate_unknown = False
    _turn_began = math.inf
    """time.monotonic() when the first chunk had ended, which may have had to find its place anew."""

    def __init__(self, work: Work, crew: Crew, observation: Observation) -> None:
        self._work = work
        self._crew = crew
        self._observation = observation
        self._hold = work.delivery.hold
        self._was_direct = not work.message.from_outbox

    async def settle(self) -> Settled:
        """Until there is an outcome."""
        settled = None
        try:
            while settled is None:
                settled = await self._once()
        finally:
            self._work.memory.forget()
        return settled

    async def after_first(self, raised: BaseException) -> Settled | None:
        """Where a first transaction was begun elsewhere, and has raised this. None: it is for `settle` to try again."""
        self._seen, self._has_begun = ledger.Seen(self._work.delivery.failures), True
        return await self._after(raised)

    async def _once(self) -> Settled | None:
        try:
            done = await self._transaction()
        except GeneratorExit:
            raise
        except BaseException as raised:  # noqa: BLE001 - whatever a handler raises
            return await self._after(raised)
        outcome = done if isinstance(done, Completed) else await self._read(done)
        return None if outcome is None else self._settled(outcome)

    async def _after(self, raised: BaseException) -> Settled | None:
        """What a transaction that raised comes to. None: run it again at once."""
        self._work.memory.forget()
        error = plainly(raised)
        outcome = await self._judge(error)
        if outcome is not None:
            return self._settled(outcome, error)
        self._retries += 1
        self._fate_unknown |= isinstance(error, FateUnknown)
        return None

    def _transaction(self) -> Coroutine[Any, Any, Done]:
        """One transaction, unless a chunk has to wait."""
        self._seen = None
        return self._chunk() if isinstance(self._work.handler, ChunkedHandler) else self._carry_out()

    async def _chunk(self) -> Done:
        return await self._crew.brakes.look(self._work) or await self._carry_out()

    def _carry_out(self) -> Coroutine[Any, Any, Done]:
        handler = self._work.handler
        self._hold.begins(handler.timeout)
        if keeps_run(handler):
            return self._crew.kept.carry_out(self._work, self._begun)
        self._begun(ledger.Seen(self._work.delivery.failures))
        return self._crew.unkept.carry_out(self._work, Guard())

    def _begun(self, seen: ledger.Seen) -> None:
        self._seen, self._has_begun = seen, True
        self._observation.begun(seen.failures + 1)

    async def _read(self, done: Done) -> Outcome | None:
        """What a transaction that came to its end means. None: the next chunk begins."""
        match done:
            case Completed() | Released():
                return done
            case Yielded():
                return await self._after_chunk(done)
            case Held() | Cancelled():
                return await self._record(cancelled(done) if isinstance(done, Cancelled) else held_back(done))
            case ledger.NotDue():
                return Released("it isn't due", done.delay)
            case ledger.Ended():
                is_ours = self._fate_unknown and done.status == "completed"
                return Completed(done.result) if is_ours else duplicate_of(done)
            case _:
                assert_never(done)

    async def _after_chunk(self, done: Yielded) -> Outcome | None:
        """The chunk has made the job the outbox's, and its failures count anew."""
        self._work.identity = replace(self._work.run, from_outbox=True)
        self._seen, self._retries, self._fate_unknown = None, 0, False
        self._turn_began = min(self._turn_began, time.monotonic())
        if self._hold.is_aborted():
            return await self._record(ABORTED)
        if self._hold.is_stopping() or is_cancelled():
            return Yielded()
        if done.delay is not None:
            return done
        return Yielded(TO_THE_END, "others have their turn") if self._has_had_its_turn() else None

    def _has_had_its_turn(self) -> bool:
        handler = self._work.handler
        elapsed = timedelta(seconds=time.monotonic() - self._turn_began)
        return isinstance(handler, ChunkedHandler) and elapsed >= handler.yield_after

    async def _judge(self, error: BaseException) -> Outcome | None:
        """What a transaction that raised comes to. None: run it again at once, with nothing counted."""
        if self._hold.is_aborted():
            return await self._record(ABORTED)
        # Once the worker stops, whatever a cancelled handler raises is the cancellation's. (A count of cancellations
        # alone proves nothing: in Python 3.11 a TaskGroup that failed leaves one behind.)
        is_cancellation = is_cancelled() and isinstance(error, asyncio.CancelledError)
        if is_cancelled() and (self._hold.is_stopping() or (is_cancellation and not self._hold.tells_of_stops())):
            return Released("the worker stops")
        if is_cancellation:
            error = SelfCancelled()
        match error:
            # A subclass's `__init__` may not have called Snooze's: a failure then.
            case Snooze(delay=timedelta()) if timedelta(0) <= error.delay <= LONGEST_DELAY:
                return await self._record(snoozed(Snoozed(error.delay), error))
            case Cancel():
                return await self._record(cancelled(Cancelled(str(error.reason))))
            case LedgerBusy():
                return None if error.is_conflict and self._may_retry() else Released(str(error), BUSY)
            case _:
                return await self._judge_failure(error)

    async def _judge_failure(self, error: BaseException) -> Outcome | None:
        """A failure, unless PostgreSQL is at fault. None: run it again at once."""
        if self._seen is None and is_pool_empty(error):
            return Released("no connection is free", BUSY)
        is_lost, before = is_lost_connection(error), cancellations()
        if is_lost and not await to_its_end(self._crew.availability.check()):
            # Where a commit was under way, the next begin reads its fate under the run's lock.
            return Released("PostgreSQL is away", BUSY)
        is_aborted = self._hold.is_aborted()  # while PostgreSQL was looked for, as below
        if not is_aborted and cancellations() > before:
            return Released("the worker stops")
        if not is_aborted and (is_lost or is_conflict(error)) and self._may_retry():
            return None
        return await self._record(ABORTED if is_aborted else failed(error, self._work.handler.retry))

    def _may_retry(self) -> bool:
        return self._retries < IMMEDIATE_RETRIES

    async def _record(self, decision: Decision) -> Outcome:
        # Of a handler that keeps no run the attempt saw only what Redis counts; the ledger knows.
        seen = self._seen if keeps_run(self._work.handler) else None
        return await to_its_end(self._crew.setbacks.record(self._work.run, self._work.raw, seen, decision))

    def _settled(self, outcome: Outcome, error: BaseException | None = None) -> Settled:
        failures = self._seen.failures if self._seen else 0
        has_row = self._work.run.from_outbox or isinstance(outcome, WAITING)
        adopted = self._was_direct and has_row
        return Settled(outcome, error, failures + 1, adopted=adopted, has_begun=self._has_begun)


ABORTED = cancelled(Cancelled("aborted"))
WAITING = (Yielded, Snoozed, Retrying)
"""Outcomes of which the outbox has a row."""
