"""What a death leaves in the ledger: a failure like any other, and the third in a row makes the job Dead."""

import time
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import ledger
from worker.call import identity_of
from worker.database import application_name
from worker.delivery import Delivery, Report
from worker.errors import ProcessDied
from worker.executor import subject_of
from worker.faults import is_expected
from worker.handler import HandlerTable
from worker.outcome import BUSY, Dead, Outcome, Released, Retrying, describe
from worker.reporting.observer import Observer
from worker.retry import RetryPolicy
from worker.setback import MAX_TRACEBACK, Decision, Move, Setbacks
from worker.shield import to_its_end
from worker.wire import Message, restamp

MAX_DEATHS = 3
"""In a row, without a committed chunk in between."""

# A backend in the middle of a statement doesn't notice that its client is gone, and holds the run's lock.
_END_ITS_BACKENDS = text("""
select pg_terminate_backend(pid) from pg_stat_activity where application_name = :name and usename = current_user
""")

# A chunk that commits, and a replay, set the run's failures to zero: what came before them counts no more.
_DEATHS_BEFORE = text("""
select coalesce(bool_and(starts_with(error, :death)), false) and count(*) = :others from (
    select error from worker.attempt where id = :id and enqueued_ms = :ms order by seq desc
    limit least(:others, (select attempt from worker.run where id = :id and enqueued_ms = :ms))
) as newest
""")


@dataclass(frozen=True, slots=True)
class Death:
    """How a process died."""

    pid: int
    how: str
    """`was killed by SIGKILL`, `exited with 9`."""
    trace: str = ""
    """Where its threads were, in the words of Python's faulthandler, if it could still say so."""
    company: int = 1
    """Jobs that ran in it then."""
    had_others: bool = False
    """Whether it had run other jobs than the one that is told of this."""
    was_ready: bool = True
    """Whether it had got as far as to run jobs."""


@dataclass(slots=True)
class Suspect:
    """A job that a process may have died of."""

    delivery: Delivery
    raw: bytes
    message: Message
    company: int
    """Suspects that may run in one child with it, itself among them. 1: it runs alone, in a fresh one."""


class ProcessDeath(Exception):
    """Raised to each delivery that ran in a process when it died."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.how)
        self.death = death


class Deaths:
    """Records them. Each is a transaction of its own, as for any failure."""

    def __init__(self, engine: AsyncEngine, setbacks: Setbacks, observer: Observer, handlers: HandlerTable) -> None:
        self._engine = engine
        self._setbacks = setbacks
        self._observer = observer
        self._handlers = handlers

    async def record(self, suspect: Suspect, death: Death) -> Report:
        """The job's own process has died of it. Where the ledger can't be written, nothing counts."""
        return await to_its_end(self._record(suspect, death))

    async def _record(self, suspect: Suspect, death: Death) -> Report:
        delivery, message, attempt = suspect.delivery, suspect.message, 1
        run, now_ms = identity_of(delivery, message), time.time_ns() // 1_000_000
        retry = self._handlers[message.name].retry

        def decide(failures: int) -> tuple[Move, Outcome]:
            nonlocal attempt
            attempt = failures + 1
            return _died(death, retry, is_last=is_last)(failures)

        with self._observer.observe(subject_of(delivery, message)) as observation:
            try:
                is_last = await self._is_last(run, death)
                outcome = await self._setbacks.record(run, suspect.raw, None, decide)
            except Exception as error:
                if not is_expected(error):
                    raise
                outcome = Released("the ledger can't be read", BUSY)
            observation.begun(attempt)
            observation.ended(outcome, ProcessDied(death.how))
        newly_adopted = isinstance(outcome, Retrying) and not message.from_outbox
        adopted = restamp(suspect.raw, enqueued_ms=message.enqueued_ms) if newly_adopted else None
        return Report(outcome, message, attempt, now_ms, now_ms, adopted, has_died=True)

    async def _is_last(self, run: ledger.Identity, death: Death) -> bool:
        """Whether this death makes the job Dead."""
        before = {"death": ProcessDied.__name__, "others": MAX_DEATHS - 1}
        async with self._engine.connect() as connection:
            await connection.execute(_END_ITS_BACKENDS, {"name": application_name(death.pid)})
            is_last: bool = (await connection.execute(_DEATHS_BEFORE, {**run.key, **before})).scalar_one()
        return is_last


def _died(death: Death, retry: RetryPolicy, *, is_last: bool) -> Decision:
    """A failure, which the policy judges as any other, unless it is the last of a row."""
    ending = f"; {MAX_DEATHS} in a row are the end" if is_last else ""
    error = ProcessDied(f"The process {death.pid}, which ran this job alone, {death.how}{ending}.")
    told = describe(error)
    trace = f"{death.trace}{told}\n"[-MAX_TRACEBACK:]

    def decide(failures: int) -> tuple[Move, Outcome]:
        if is_last or retry.is_hopeless(error, failures + 1):
            return Move("dead", told, burns=True, traceback=trace), Dead(told)
        delay = retry.delay(failures + 1)
        return Move("retrying", told, delay, burns=True, traceback=trace), Retrying(delay, told)

    return decide
