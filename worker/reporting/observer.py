"""What the runtime tells of its work. The executor knows this and no more; logs and Sentry stand behind it."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from worker.outcome import Outcome


@dataclass(slots=True)
class Subject:
    """The job that an attempt is about."""

    job_id: str
    name: str
    queue: str
    enqueued_ms: int
    latency_ms: int
    """From when it was due to when this worker took it."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The message's headers: the trace it continues, the cron entry it comes from."""
    payload: bytes = b""
    """JSON. Shown only where settings ask for it."""


class Observation(Protocol):
    """One attempt, being watched."""

    def begun(self, attempt: int) -> None:
        """The run is locked and the handler starts; `attempt` counts from 1."""
        ...

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        """The outcome is settled in PostgreSQL. `error` is what led to it, if anything did."""
        ...


class Observer(Protocol):
    """Somebody who is told."""

    def observe(self, subject: Subject) -> AbstractContextManager[Observation]:
        """Enter before the attempt, leave after `ended`. Runs inside the attempt's task, so context variables hold."""
        ...

    def fault(self, part: str, error: BaseException) -> None:
        """A part of the runtime itself (`relay`, `consumer`, …) failed in a way nobody expected."""
        ...


class Observers:
    """Several observers, told in order."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    @contextmanager
    def observe(self, subject: Subject) -> Generator[Observation]:
        """Every observer's observation as one."""
        with ExitStack() as stack:
            yield _Observations([stack.enter_context(each.observe(subject)) for each in self._observers])

    def fault(self, part: str, error: BaseException) -> None:
        """Tell all."""
        for each in self._observers:
            each.fault(part, error)


class _Observations:
    def __init__(self, observations: list[Observation]) -> None:
        self._observations = observations

    def begun(self, attempt: int) -> None:
        for each in self._observations:
            each.begun(attempt)

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        for each in self._observations:
            each.ended(outcome, error)
