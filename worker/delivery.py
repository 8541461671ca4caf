"""What passes between consumer and executor: a job as bytes one way, what came of it the other. Pure.

These, and what else is made for each job (Claim, Finish, PutBack, Message, Subject, Identity, Work, Begun, Settled),
aren't frozen: a frozen dataclass takes a microsecond longer to make, and ten of them were a quarter of a job that does
nothing. They count as frozen but for what is known only later (Claim.is_restored, Begun.progress, Begun.created_at and
Report.context) or taken once (Work.job), each set in one place. For the same reason what only passes a coroutine on
is no coroutine function itself.
"""

from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from worker.outcome import Outcome
from worker.wire import Message


class Hold(Protocol):
    """The worker's hold on a delivered job."""

    async def is_ours(self) -> bool:
        """Whether the lease in Redis still carries this worker's token."""
        ...

    def begins(self, timeout: timedelta) -> None:
        """A transaction begins that may take this long; the lease is renewed for as long, and its grace."""
        ...

    def is_stopping(self) -> bool:
        """Whether the worker has been asked to stop. A chunked job yields then."""
        ...

    def is_aborted(self) -> bool:
        """Whether arq's abort asked for this job's end."""
        ...

    def tells_of_stops(self) -> bool:
        """Whether `is_stopping` is true before a job is cancelled for that. Else any cancellation may mean a stop."""
        ...

    def shares_slot(self) -> None:
        """This delivery waits for others to make a batch with, which needs one slot: the worker may take one more."""
        ...

    def takes_slot(self) -> None:
        """The batch begins, and this delivery, which ends last, has the slot, though none may be free just now."""
        ...


@dataclass(slots=True)
class Delivery:
    """One delivery of one job."""

    job_id: str
    queue: str
    message: bytes | None
    """The bytes of `arq:job:{id}`; None where the id stood in the queue without them."""
    hold: Hold
    delivered_ms: int
    """Redis's time at the claim."""
    due_ms: int
    """When it was due, by Redis's clock."""
    failures: int = 0
    """As Redis counts them, for handlers that ask PostgreSQL nothing."""
    is_suspect: bool = False
    """Whether a process may have died of it before."""


@dataclass(slots=True)
class Kept:
    """A result that the executor encoded itself, as it is to stand in Redis."""

    result: bytes
    duration: timedelta | None
    """None: for ever; zero: not at all."""


@dataclass(slots=True)
class Report:
    """What the consumer needs to settle a delivery."""

    outcome: Outcome
    message: Message | None = None
    attempt: int = 1
    started_ms: int = 0
    finished_ms: int = 0
    adopted: bytes | None = None
    """The message as it must now stand in Redis: the job was adopted by the outbox."""
    kept: Kept | None = None
    """None: the result is that of the outcome, kept as the worker keeps results."""
    stays: timedelta = timedelta(0)
    """How long the id stays in progress though the job has ended: none of that id begins meanwhile."""
    afterwards: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Called when Redis was told. Doesn't raise."""
    context: Context | None = None
    """What the job ran in, and so does `afterwards`: what a hook has set there is there, and can be reset."""
    has_begun: bool = True
    """False: the handler wasn't called."""
    has_died: bool = False
    """Whether a process died of it now: it stays a suspect."""


class NoHold:
    """For deliveries that no lease stands behind: the stock arq worker's, and the testing kit's."""

    async def is_ours(self) -> bool:
        """Never: then nobody else's transaction is ended on its behalf."""
        return False

    def begins(self, timeout: timedelta) -> None:
        """There is no lease to renew."""

    def is_stopping(self) -> bool:
        """Never: its caller cancels instead."""
        return False

    def tells_of_stops(self) -> bool:
        """It doesn't."""
        return False

    def is_aborted(self) -> bool:
        """Never: its caller keeps that to itself."""
        return False

    def shares_slot(self) -> None:
        """There are no slots."""

    def takes_slot(self) -> None:
        """There are no slots."""
