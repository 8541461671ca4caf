"""What Sentry is told: a transaction for each attempt, an event for each dead job and each fault of the runtime."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import assert_never

import sentry_sdk
from sentry_sdk import Scope
from sentry_sdk.consts import OP, SPANDATA, SPANSTATUS
from sentry_sdk.tracing import Span, Transaction, TransactionSource
from sentry_sdk.types import Event
from sentry_sdk.utils import event_from_exception

from worker.errors import UnknownJob
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.reporting.expected import is_expected
from worker.reporting.monitors import Monitors
from worker.reporting.observer import Observation, Subject
from worker.reporting.seldom import Seldom
from worker.reporting.trace import TRACE_HEADERS
from worker.reporting.tracebacks import error_name
from worker.schedule import Cron


class SentryObserver:
    """Told to Sentry's SDK as `configure_sentry` set it up; does nothing where it isn't."""

    def __init__(self, schedule: Iterable[Cron] = (), *, payloads: bool = False) -> None:
        """`schedule` describes the cron monitors. With `payloads` the event of a dead job carries its payload."""
        self._monitors = Monitors(schedule)
        self._payloads = payloads
        self._seldom = Seldom()

    @contextmanager
    def observe(self, subject: Subject) -> Generator[Observation]:
        """A scope of the attempt's own, and in it a transaction that continues the enqueuer's trace."""
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tags({"job": subject.name, "job_id": subject.job_id, "queue": subject.queue})
            with sentry_sdk.start_transaction(_transaction(subject)) as span:
                yield _SentryObservation(subject, scope, span, self._monitors, payloads=self._payloads)

    def fault(self, part: str, error: BaseException) -> None:
        """One event for a surprise, one for the name of an unknown job; none for what happens to everybody."""
        unknown = error.name if isinstance(error, UnknownJob) else ""
        if is_expected(error) or not self._seldom.times(part, type(error).__name__, unknown):
            return
        with sentry_sdk.new_scope() as scope:
            scope.set_tag("part", part)
            if isinstance(error, UnknownJob):
                scope.set_tag("job", error.name)
                scope.fingerprint = ["UnknownJob", error.name]
            _capture(error)


def _transaction(subject: Subject) -> Transaction:
    """With the operation and the attributes of Sentry's queue monitoring. A trace is never worth a job."""
    headers = {name: subject.headers[name] for name in TRACE_HEADERS if name in subject.headers}
    try:
        transaction = _continued(subject.name, headers)
    except Exception:  # noqa: BLE001 - strangers write headers, and the SDK raises for a rate of infinity
        transaction = _continued(subject.name, {})
    transaction.set_data(SPANDATA.MESSAGING_SYSTEM, "ratchet")
    transaction.set_data(SPANDATA.MESSAGING_MESSAGE_ID, subject.job_id)
    transaction.set_data(SPANDATA.MESSAGING_DESTINATION_NAME, subject.queue)
    transaction.set_data(SPANDATA.MESSAGING_MESSAGE_RECEIVE_LATENCY, subject.latency_ms)
    transaction.set_data("messaging.message.body.size", len(subject.payload))
    return transaction


def _continued(name: str, headers: Mapping[str, str]) -> Transaction:
    return sentry_sdk.continue_trace(
        dict(headers), op=OP.QUEUE_PROCESS, name=name, source=TransactionSource.TASK, origin="auto.queue.ratchet"
    )


class _SentryObservation:
    def __init__(self, subject: Subject, scope: Scope, span: Span, monitors: Monitors, *, payloads: bool) -> None:
        self._subject = subject
        self._scope = scope
        self._span = span
        self._monitors = monitors
        self._payloads = payloads
        self._begun = False

    def begun(self, attempt: int) -> None:
        if not self._begun:
            self._monitors.begun(self._subject)
        self._begun = True
        self._scope.set_tag("attempt", str(attempt))
        self._span.set_data(SPANDATA.MESSAGING_MESSAGE_RETRY_COUNT, attempt - 1)

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        self._span.set_status(_status(outcome))
        self._scope.set_tag("outcome", type(outcome).__name__.lower())
        self._monitors.ended(self._subject, outcome)
        if isinstance(outcome, Dead):
            self._tell_dead(outcome, error)
        elif not self._begun:
            self._span.sampled = False  # nothing was attempted: a duplicate, or put back at once

    def _tell_dead(self, outcome: Dead, error: BaseException | None) -> None:
        name = error_name(error, outcome.error)
        self._scope.fingerprint = [name, self._subject.name]
        if self._payloads:
            self._scope.set_context("job", {"payload": self._subject.payload.decode("utf-8", "replace")})
        if error is not None:
            _capture(error)
        else:
            event: Event = {"level": "error", "exception": {"values": [{"type": name, "value": outcome.error}]}}
            sentry_sdk.capture_event(event)


def _capture(error: BaseException) -> None:
    options = sentry_sdk.get_client().options
    event, hint = event_from_exception(error, client_options=options, mechanism={"type": "ratchet", "handled": False})
    sentry_sdk.capture_event(event, hint=hint)


def _status(outcome: Outcome) -> str:
    match outcome:
        case Completed() | Duplicate() | Yielded() | Snoozed():
            return SPANSTATUS.OK
        case Retrying() | Dead():
            return SPANSTATUS.INTERNAL_ERROR
        case Released():
            return SPANSTATUS.ABORTED
        case Cancelled():
            return SPANSTATUS.CANCELLED
        case _:
            assert_never(outcome)
