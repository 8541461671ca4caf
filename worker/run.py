"""The run that a handler carries out, as the handler may ask for it."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from worker.ledger import Begun, Identity


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run that the calling handler carries out."""

    job_id: str
    """All jobs of a `key` have one, one after another; `idempotency_key` tells them apart."""
    enqueued_ms: int
    enqueued_at: datetime
    """When the job was enqueued; of a tick of the schedule, its time; for a `job_id` its caller chose, when its run was
    first begun, or it was delivered where none is kept."""
    attempt: int
    """From 1."""
    name: str
    queue: str

    @property
    def idempotency_key(self) -> str:
        """For side effects outside the database: the same in every attempt of this job, and of no other job.

        With a `job_id` that was chosen for the outbox it is that. The chunks of a job share one: put the cursor behind
        it.
        """
        return f"{self.job_id}:{self.enqueued_ms}" if self.enqueued_ms else self.job_id


Current: TypeAlias = CurrentRun | tuple[CurrentRun, ...]
"""A tuple in a batch handler, even of one."""

Tell: TypeAlias = Callable[[], Current]
"""Tells of the run, or runs, that a handler is called for."""
current: ContextVar[Tell] = ContextVar("current_run")
"""Set while a handler runs. Asked when it asks, since most never do."""


def current_run() -> CurrentRun:
    """The run of the calling handler. Raises RuntimeError outside of one, and in a batch handler."""
    asked = _get("current_run")
    if isinstance(asked, tuple):
        raise RuntimeError("current_run() was called in a batch handler, which has many; use current_runs().")  # noqa: TRY004 - nothing is wrong with a type
    return asked


def current_runs() -> tuple[CurrentRun, ...]:
    """The runs of the calling batch handler, in the order of its jobs; of any other handler, its one run.

    Raises RuntimeError outside of a handler.
    """
    asked = _get("current_runs")
    return asked if isinstance(asked, tuple) else (asked,)


def _get(caller: str) -> Current:
    try:
        tell = current.get()
    except LookupError:
        raise RuntimeError(f"{caller}() was called outside a handler; call it in one, or use worker.testing.") from None
    return tell()


def current_of(run: Identity, begun: Begun) -> CurrentRun:
    """What the handler is told of its run."""
    if run.enqueued_ms > 0:
        enqueued_at = datetime.fromtimestamp(run.enqueued_ms / 1000, UTC)
    else:
        enqueued_at = begun.created_at = begun.created_at or datetime.now(UTC)  # each time the same
    return CurrentRun(run.job_id, run.enqueued_ms, enqueued_at, begun.failures + 1, run.name, run.queue)
