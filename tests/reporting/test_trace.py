"""The enqueuer's trace goes with the message and on in the job."""

import importlib
import json
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import sentry_sdk
from sentry_sdk import traces
from sqlalchemy.orm import Session

from tests.reporting.conftest import StartReporting
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import PAY, attempt
from tests.support.waiting import wait_until
from worker.job import Job
from worker.models import Outbox
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.reporting.trace import loaded_sdk, outgoing_headers
from worker.wire import Message, decode

LOADING = Barrier(2, timeout=10)
"""Met by a module that is half loaded, and again when it may go on."""


class Pay(Job, name="orders.pay"):
    order_id: int


def enqueued() -> Message:
    """What leaves with a job that is enqueued here and now."""
    session = Session()
    enqueue(session, Pay(order_id=1))
    [row] = session.new
    assert isinstance(row, Outbox)
    message = decode(row.message)
    assert isinstance(message, Message)
    return message


def test_a_job_goes_on_in_the_trace_of_the_span_that_enqueued_it(
    start: StartReporting, sentry: SentryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    observers = start()
    with sentry_sdk.start_transaction(name="POST /orders", op="http.server") as request:
        with sentry_sdk.start_span(op="queue.publish", name="orders.pay") as span:
            message = enqueued()
        attempt(observers, Completed(), headers=message.headers)
    job, enqueuer = sentry.transactions()
    assert enqueuer["transaction"] == "POST /orders"
    assert job["contexts"]["trace"]["trace_id"] == enqueuer["contexts"]["trace"]["trace_id"] == request.trace_id
    assert job["contexts"]["trace"]["parent_span_id"] == span.span_id
    assert json.loads(capsys.readouterr().err)["trace_id"] == request.trace_id


def test_a_job_enqueued_by_a_job_is_in_its_trace(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    with observers.observe(PAY) as observation:
        observation.begun(1)
        message = enqueued()
        observation.ended(Completed(), None)
    attempt(observers, Completed(), headers=message.headers)
    first, second = (transaction["contexts"]["trace"] for transaction in sentry.transactions())
    assert second["trace_id"] == first["trace_id"]
    assert second["parent_span_id"] == first["span_id"]


def test_a_log_line_has_the_id_of_the_trace_that_the_job_opens(
    start: StartReporting, sentry: SentryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(start(), Completed())
    [transaction] = sentry.transactions()
    assert json.loads(capsys.readouterr().err)["trace_id"] == transaction["contexts"]["trace"]["trace_id"]


def test_nothing_is_added_to_the_message_where_tracing_is_off(start: StartReporting) -> None:
    start(sentry_traces_sample_rate=0)
    with sentry_sdk.start_transaction(name="POST /orders"):
        assert outgoing_headers() == {}


def test_an_enqueuer_that_streams_its_spans_is_followed_too(start: StartReporting, sentry: SentryServer) -> None:
    sentry_sdk.init(
        sentry.dsn,
        traces_sample_rate=1,
        trace_lifecycle="stream",
        default_integrations=False,
        enable_backpressure_handling=False,
    )
    with traces.start_span(name="POST /orders") as span:
        message = enqueued()
    assert outgoing_headers() == {}
    attempt(start(), Completed(), headers=message.headers)
    [job] = sentry.transactions()
    assert job["contexts"]["trace"]["trace_id"] == span.trace_id
    assert job["contexts"]["trace"]["parent_span_id"] == span.span_id


def test_nothing_is_added_to_the_message_where_sentry_is_off() -> None:
    with sentry_sdk.start_transaction(name="POST /orders"):
        assert outgoing_headers() == {}


def test_jobs_that_are_enqueued_outside_any_transaction_are_not_joined_in_one_trace(start: StartReporting) -> None:
    start()
    assert outgoing_headers() == {}
    with sentry_sdk.start_span(op="db", name="select 1"):
        assert outgoing_headers() == {}
    with sentry_sdk.start_transaction(name="POST /orders"):
        assert set(outgoing_headers()) == {"sentry-trace", "baggage"}


async def test_who_enqueues_while_another_thread_loads_the_sdk_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sentry_sdk.py").write_text(
        f"from {__name__} import LOADING\nLOADING.wait()\nLOADING.wait()\nwhole = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sentry_sdk")
    with ThreadPoolExecutor(2) as threads:
        loading = threads.submit(importlib.import_module, "sentry_sdk")
        LOADING.wait()
        asking = threads.submit(lambda: hasattr(loaded_sdk(), "whole"))

        async def waits_or_has_asked() -> bool:
            stacks = map(traceback.extract_stack, sys._current_frames().values())
            waiting = [stack for stack in stacks if any(frame.name == "loaded_sdk" for frame in stack)]
            return asking.done() or any("importlib" in stack[-1].filename for stack in waiting)

        await wait_until(waits_or_has_asked)
        LOADING.wait()
        loading.result()
        assert asking.result()
