"""What the logs tell of each attempt."""

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Self

import structlog

from worker.errors import UnknownJob
from worker.faults import of_driver
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.reporting.bound import bound
from worker.reporting.expected import is_expected
from worker.reporting.observer import Subject
from worker.reporting.seldom import Seldom
from worker.reporting.trace import loaded_sdk
from worker.reporting.tracebacks import error_name

MAX_SHOWN = 2_000
"""Bytes of a payload, where payloads are logged."""
LEVELS: Mapping[type[Outcome], int] = {
    Released: logging.DEBUG,
    **dict.fromkeys((Completed, Duplicate, Yielded, Snoozed, Cancelled), logging.INFO),
    Retrying: logging.WARNING,
    Dead: logging.ERROR,
}
TRACE_ID = re.compile(r"[0-9a-f]{32}(?=-)")


class LogObserver:
    """One line at the end of each attempt. What is logged in between carries the job's name, id, queue and attempt."""

    def __init__(self, *, payloads: bool = False) -> None:
        """With `payloads` the payload and the error's text are logged too; both may hold data."""
        self._payloads = payloads
        self._seldom = Seldom()
        # Bound once: structlog's own proxy binds anew for each line.
        self._log = structlog.get_logger("worker.job").bind()

    def observe(self, subject: Subject) -> "_LogObservation":
        """Make the job known to what is logged in the attempt's task."""
        return _LogObservation(self._log, subject, payloads=self._payloads)

    def fault(self, part: str, error: BaseException) -> None:
        """One line a minute for each part, error and job: a warning for what happens to everybody, else an error with
        the frames it came through.
        """
        log = structlog.get_logger("worker")
        if isinstance(error, UnknownJob):
            log.warning("unknown_job", job=error.name, hint="deploy a worker that has a handler, or add an alias")
            return
        # The driver's own error says what is wrong: InsufficientPrivilegeError, DiskFullError.
        name, attempt = type(of_driver(error)).__name__, bound.get()
        times = self._seldom.times(part, name, str(attempt()["job"]) if attempt else "")
        if not times:
            return
        again = {"times": times} if times > 1 else {}
        if is_expected(error):
            log.warning("fault", part=part, error=name, **again)
        else:
            log.error("fault", part=part, error=name, **again, exc_info=error)


class _LogObservation:
    __slots__ = ("_attempt", "_log", "_payloads", "_started", "_subject", "_token", "_trace")

    def __init__(self, log: Any, subject: Subject, *, payloads: bool) -> None:
        self._log = log
        self._subject = subject
        self._payloads = payloads
        self._attempt = 0
        self._trace: dict[str, object] | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._token = bound.set(self.bound)
        return self

    def __exit__(self, *_raised: object) -> None:
        bound.reset(self._token)

    def begun(self, attempt: int) -> None:
        self._attempt = attempt

    def bound(self) -> dict[str, object]:
        """What each line of the attempt carries."""
        attempt = {"attempt": self._attempt} if self._attempt else {}
        subject = self._subject
        if self._trace is None:
            trace_id = _trace_id(subject)
            self._trace = {"trace_id": trace_id} if trace_id else {}
        return {"job": subject.name, "job_id": subject.job_id, "queue": subject.queue, **attempt, **self._trace}

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        level = LEVELS[type(outcome)]
        if not self._log.is_enabled_for(level):
            return
        fields: dict[str, object] = {
            "ms": round((time.perf_counter() - self._started) * 1000, 1),
            "latency_ms": self._subject.latency_ms,
            **_particulars(outcome),
        }
        if isinstance(outcome, Retrying | Dead):
            fields |= {"error": error_name(error, outcome.error), "hint": f"worker show {self._subject.job_id}"}
            if self._payloads:
                fields["error_text"] = outcome.error
        if self._payloads:
            fields["payload"] = self._subject.payload[:MAX_SHOWN].decode("utf-8", "replace")
        self._log.log(level, type(outcome).__name__.lower(), **fields)


def _particulars(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case Retrying() | Snoozed():
            return {"delay_s": round(outcome.delay.total_seconds(), 1)}
        case Released():
            return {"reason": outcome.reason, "delay_s": round(outcome.delay.total_seconds(), 1)}
        case Yielded(delay, reason) if reason:
            return {"reason": reason, "delay_s": round(delay.total_seconds(), 1) if delay else 0.0}
        case _:
            return {}


def _trace_id(subject: Subject) -> str | None:
    """The trace that the message continues, else the one that is open here, else none."""
    given = TRACE_ID.match(subject.headers.get("sentry-trace", ""))
    if given:
        return given[0]
    sdk = loaded_sdk()
    transaction = sdk.get_current_scope().transaction if sdk else None
    return transaction.trace_id if transaction else None
