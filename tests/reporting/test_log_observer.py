"""One line an attempt, and the job's name, id, queue, attempt and trace on every line in between."""

import json
import logging
from datetime import timedelta
from typing import Any, get_args

import asyncpg
import pytest
import structlog
from sqlalchemy.exc import DBAPIError

from tests.reporting.conftest import settings_with
from tests.reporting.subjects import PAY, TRACE_ID, TRACED, attempt, raised
from worker.errors import UnknownJob
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.reporting import seldom
from worker.reporting.log_observer import LogObserver
from worker.reporting.logs import configure

SECRET = "ann@example.org"
WAIT = timedelta(seconds=4)

LEVELS: list[tuple[Outcome, str]] = [
    (Completed(), "info"),
    (Duplicate(), "info"),
    (Yielded(), "info"),
    (Snoozed(WAIT), "info"),
    (Cancelled(SECRET), "info"),
    (Released("the lock is held"), "debug"),
    (Retrying(WAIT, f"ValueError: {SECRET}"), "warning"),
    (Dead(f"EmailTaken: {SECRET}"), "error"),
]


class EmailTaken(Exception):
    pass


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def log_everything() -> LogObserver:
    """In the test itself: pytest gives stderr anew to each of its phases, so a fixture would come too early."""
    configure(settings_with(log_level="debug"))
    return LogObserver()


@pytest.mark.parametrize(("outcome", "level"), LEVELS)
def test_each_outcome_is_one_line_at_its_level(
    outcome: Outcome, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    observer = log_everything()
    attempt(observer, outcome)
    [line] = lines(capsys)
    assert (line["event"], line["level"]) == (type(outcome).__name__.lower(), level)


def test_every_outcome_has_a_level() -> None:
    assert {type(outcome) for outcome, _ in LEVELS} == set(get_args(Outcome))


def test_the_line_says_which_job_which_attempt_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    attempt(observer, Completed({"total_cents": 5}), number=3, headers=TRACED)
    [line] = lines(capsys)
    del line["timestamp"]
    assert line.pop("ms") >= 0
    assert line == {
        "event": "completed",
        "level": "info",
        "logger": "worker.job",
        "job": PAY.name,
        "job_id": PAY.job_id,
        "queue": PAY.queue,
        "attempt": 3,
        "trace_id": TRACE_ID,
        "latency_ms": 40,
    }


def test_a_failure_names_its_error_s_type_and_where_the_text_is(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    attempt(observer, Dead(f"EmailTaken: {SECRET}"), raised(EmailTaken(SECRET)))
    attempt(observer, Retrying(WAIT, f"EmailTaken: {SECRET}"), raised(EmailTaken(SECRET)))
    dead, retrying = lines(capsys)
    assert dead["error"] == retrying["error"] == "EmailTaken"
    assert dead["hint"] == f"worker show {PAY.job_id}"
    assert retrying["delay_s"] == 4


def test_a_failure_without_an_error_still_has_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    attempt(observer, Dead(f"WorkerLost: {SECRET}"))
    attempt(observer, Dead(f"three workers died of {SECRET}"))
    assert [line["error"] for line in lines(capsys)] == ["WorkerLost", "Error"]


@pytest.mark.parametrize("outcome", [outcome for outcome, _ in LEVELS])
def test_no_payload_and_no_error_s_text_is_logged(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    attempt(observer, outcome, raised(EmailTaken(SECRET)), payload=f'{{"email":"{SECRET}"}}'.encode())
    written = capsys.readouterr().err
    assert type(outcome).__name__.lower() in written
    assert SECRET not in written


def test_payload_and_text_are_logged_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_payloads=True))
    attempt(LogObserver(payloads=True), Dead(f"EmailTaken: {SECRET}"), payload=b'{"email":"' + b"x" * 5_000)
    [line] = lines(capsys)
    assert line["error_text"] == f"EmailTaken: {SECRET}"
    assert line["payload"].startswith('{"email":"x')
    assert len(line["payload"]) == 2_000


def test_lines_inside_the_handler_carry_the_job_whoever_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    with observer.observe(PAY) as observation:
        observation.begun(2)
        structlog.get_logger("shop").info("asked", provider="bank")
        logging.getLogger("shop").info("asked")
        observation.ended(Completed(), None)
    for line in lines(capsys):
        assert (line["job"], line["job_id"], line["queue"], line["attempt"]) == (PAY.name, PAY.job_id, PAY.queue, 2)


def test_nothing_of_the_job_is_left_on_the_lines_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    with structlog.contextvars.bound_contextvars(attempt="outer"):
        with observer.observe(PAY) as observation:
            observation.begun(1)
            observation.begun(2)
        structlog.get_logger("worker.relay").info("sent")
    [line] = lines(capsys)
    assert set(line) == {"event", "level", "logger", "timestamp", "attempt"}
    assert line["attempt"] == "outer"


@pytest.mark.parametrize("header", ["", "nonsense", "A" * 32 + "-b-1", "771a43a4192642f0b136d5159a501700"])
def test_a_header_that_is_no_trace_is_left_out(header: str, capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    attempt(observer, Completed(), headers={"sentry-trace": header})
    assert "trace_id" not in lines(capsys)[0]


def test_a_fault_is_an_error_with_its_part_its_type_and_its_frames(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    observer.fault("relay", raised(KeyError(SECRET)))
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["part"], line["error"]) == ("fault", "error", "relay", "KeyError")
    assert "in fail" in line["exception"]
    assert SECRET not in json.dumps(line)


def test_a_server_that_is_away_is_a_warning_without_frames(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    observer.fault("relay", raised(ConnectionRefusedError()))
    [line] = lines(capsys)
    assert (line["level"], line["error"], "exception" in line) == ("warning", "ConnectionRefusedError", False)


def test_a_fault_that_comes_over_and_over_is_one_line_a_minute_which_says_how_often(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = log_everything()
    for _ in range(3):
        observer.fault("pauses", raised(KeyError()))
        observer.fault("relay", raised(ConnectionRefusedError()))
    with observer.observe(PAY):
        observer.fault("pauses", raised(KeyError()))
    monkeypatch.setattr(seldom, "EVERY_S", 0.0)
    observer.fault("pauses", raised(KeyError()))
    told = [(line["part"], line["error"], line.get("job"), line.get("times")) for line in lines(capsys)]
    assert told == [
        ("pauses", "KeyError", None, None),
        ("relay", "ConnectionRefusedError", None, None),
        ("pauses", "KeyError", PAY.name, None),
        ("pauses", "KeyError", None, 3),
    ]


def test_a_fault_of_postgresql_has_the_name_of_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    refused = asyncpg.InsufficientPrivilegeError("")
    observer.fault("pauses", raised(DBAPIError("select", None, refused)))
    assert lines(capsys)[0]["error"] == "InsufficientPrivilegeError"


def test_an_unknown_job_is_a_warning_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_everything()
    observer.fault("executor", UnknownJob("orders.refund"))
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["job"]) == ("unknown_job", "warning", "orders.refund")
