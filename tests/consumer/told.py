"""An observer that keeps what it is told, for a test to wait for."""

from collections.abc import Generator
from contextlib import contextmanager

from tests.support.waiting import wait_until
from worker.outcome import Outcome
from worker.reporting.observer import Observation, Subject


class Told:
    """Outcomes and faults in the order in which they came."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        """Job ids whose handlers began."""
        self.outcomes: list[tuple[str, Outcome]] = []
        """(job id, outcome)"""
        self.faults: list[tuple[str, BaseException]] = []
        """(part, error)"""

    @contextmanager
    def observe(self, subject: Subject) -> Generator[Observation]:
        yield _Attempt(self, subject)

    def fault(self, part: str, error: BaseException) -> None:
        self.faults.append((part, error))

    def of(self, job_id: str) -> list[Outcome]:
        return [outcome for known, outcome in self.outcomes if known == job_id]

    async def outcome(self, job_id: str, count: int = 1) -> Outcome:
        """Return the `count`-th outcome of a job, now or when it comes."""

        async def is_there() -> bool:
            return len(self.of(job_id)) >= count

        await wait_until(is_there)
        return self.of(job_id)[count - 1]


class _Attempt:
    def __init__(self, told: Told, subject: Subject) -> None:
        self._told = told
        self._subject = subject

    def begun(self, attempt: int) -> None:  # noqa: ARG002 - the observer's signature
        self._told.begun.append(self._subject.job_id)

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:  # noqa: ARG002 - as above
        self._told.outcomes.append((self._subject.job_id, outcome))
