"""One event for a dead job, one for a fault of the runtime; none for what is tried again or happens to everybody."""

from datetime import timedelta

import asyncpg
import pytest
import redis
from sqlalchemy.exc import DBAPIError

from tests.reporting.conftest import StartReporting
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import PAY, TRACE_ID, TRACED, attempt, raised
from worker.errors import UnknownJob
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded

WAIT = timedelta(seconds=4)


class EmailTaken(Exception):
    pass


def test_a_dead_job_is_one_event_with_its_error_s_type_and_frames(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), Dead("EmailTaken: ann"), raised(EmailTaken("ann")), number=5, headers=TRACED)
    [event] = sentry.events()
    [error] = event["exception"]["values"]
    assert (error["type"], error["mechanism"]["handled"]) == ("EmailTaken", False)
    assert error["stacktrace"]["frames"][-1]["function"] == "fail"
    assert (event["level"], event["transaction"]) == ("error", "orders.pay")
    assert event["fingerprint"] == ["EmailTaken", "orders.pay"]
    assert event["tags"] == {
        "job": "orders.pay",
        "job_id": PAY.job_id,
        "queue": "arq:queue",
        "attempt": "5",
        "outcome": "dead",
    }
    assert event["contexts"]["trace"]["trace_id"] == TRACE_ID


def test_a_dead_job_is_also_one_transaction(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), Dead("EmailTaken: ann"), raised(EmailTaken("ann")))
    assert (len(sentry.events()), len(sentry.transactions())) == (1, 1)


def test_a_job_that_is_dead_before_it_began_is_told_too(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), Dead("InvalidPayload: no JSON"), raised(ValueError()), number=None, name="?")
    [event], [transaction] = sentry.events(), sentry.transactions()
    assert event["transaction"] == transaction["transaction"] == "?"
    assert "attempt" not in event["tags"]


def test_a_dead_job_without_an_error_is_an_event_of_its_reason_s_type(
    start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(), Dead("WorkerLost: three workers died under it"), None)
    [event] = sentry.events()
    assert event["exception"]["values"] == [{"type": "WorkerLost", "value": f"[hidden: see worker show {PAY.job_id}]"}]


def test_one_error_that_kills_two_jobs_is_two_events(start: StartReporting, sentry: SentryServer) -> None:
    observers, error = start(), raised(EmailTaken("ann"))
    attempt(observers, Dead("EmailTaken: ann"), error, job_id="1")
    attempt(observers, Dead("EmailTaken: ann"), error, job_id="2")
    assert [event["tags"]["job_id"] for event in sentry.events()] == ["1", "2"]


@pytest.mark.parametrize(
    "outcome",
    [
        Completed(),
        Duplicate(failed="ValueError: no"),
        Yielded(),
        Snoozed(WAIT),
        Retrying(WAIT, "ValueError: no"),
        Released("stop"),
        Cancelled("no"),
    ],
)
def test_no_other_outcome_is_an_event(outcome: Outcome, start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), outcome, raised(ValueError()))
    assert len(sentry.transactions()) == 1
    assert sentry.events() == []


def test_a_fault_of_the_runtime_is_one_event_however_often_it_comes_back(
    start: StartReporting, sentry: SentryServer
) -> None:
    observers = start()
    for _ in range(5):
        observers.fault("relay", raised(KeyError("ann")))
    observers.fault("relay", raised(IndexError()))
    observers.fault("schedule", raised(KeyError("ann")))
    found = [(event["tags"]["part"], event["exception"]["values"][0]["type"]) for event in sentry.events()]
    assert found == [("relay", "KeyError"), ("relay", "IndexError"), ("schedule", "KeyError")]


def test_each_unknown_job_is_an_event_with_its_name(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    for name in ("orders.refund", "orders.refund", "orders.gift"):
        observers.fault("executor", UnknownJob(name))
    assert [event["tags"]["job"] for event in sentry.events()] == ["orders.refund", "orders.gift"]
    assert [event["fingerprint"] for event in sentry.events()] == [
        ["UnknownJob", "orders.refund"],
        ["UnknownJob", "orders.gift"],
    ]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        redis.ConnectionError(),
        redis.TimeoutError(),
        redis.BusyLoadingError(),
        redis.ReadOnlyError(),
        asyncpg.SerializationError(""),
        asyncpg.DeadlockDetectedError(""),
        asyncpg.LockNotAvailableError(""),
        asyncpg.CannotConnectNowError(""),
        asyncpg.AdminShutdownError(""),
        DBAPIError("select", None, asyncpg.ConnectionDoesNotExistError(""), connection_invalidated=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_happens_to_everybody_pages_nobody(error: Exception, start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    observers.fault("relay", raised(error))
    observers.fault("relay", raised(KeyError()))
    assert [event["exception"]["values"][-1]["type"] for event in sentry.events()] == ["KeyError"]
