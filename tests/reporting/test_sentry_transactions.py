"""One transaction for each attempt, in the terms of Sentry's queue monitoring."""

import asyncio
from datetime import timedelta
from typing import get_args

import pytest
import sentry_sdk
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reporting.conftest import StartReporting
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import PARENT_SPAN_ID, PAY, TRACE_ID, TRACED, attempt
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.reporting.sentry_observer import SentryObserver

WAIT = timedelta(seconds=4)

STATUSES: list[tuple[Outcome, str]] = [
    (Completed(), "ok"),
    (Duplicate(), "ok"),
    (Yielded(), "ok"),
    (Snoozed(WAIT), "ok"),
    (Cancelled("no"), "cancelled"),
    (Released("the worker stops"), "aborted"),
    (Retrying(WAIT, "ValueError: no"), "internal_error"),
    (Dead("ValueError: no"), "internal_error"),
]


def test_a_transaction_has_the_job_s_name_queue_attempt_and_latency(
    start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(), Completed(), number=3)
    [transaction] = sentry.transactions()
    assert transaction["transaction"] == "orders.pay"
    assert transaction["transaction_info"] == {"source": "task"}
    assert transaction["contexts"]["trace"]["op"] == "queue.process"
    assert transaction["contexts"]["trace"]["data"] == {
        **transaction["contexts"]["trace"]["data"],
        "messaging.system": "ratchet",
        "messaging.message.id": PAY.job_id,
        "messaging.destination.name": "arq:queue",
        "messaging.message.receive.latency": 40,
        "messaging.message.retry.count": 2,
        "messaging.message.body.size": len(PAY.payload),
    }
    assert transaction["tags"] == {
        "job": "orders.pay",
        "job_id": PAY.job_id,
        "queue": "arq:queue",
        "attempt": "3",
        "outcome": "completed",
    }


@pytest.mark.parametrize(("outcome", "status"), STATUSES)
def test_a_transaction_s_status_tells_the_outcome(
    outcome: Outcome, status: str, start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(), outcome)
    [transaction] = sentry.transactions()
    assert transaction["contexts"]["trace"]["status"] == status


def test_every_outcome_has_a_status() -> None:
    assert {type(outcome) for outcome, _ in STATUSES} == set(get_args(Outcome))


@pytest.mark.parametrize("outcome", [Duplicate(), Released("the lock is held")])
def test_a_delivery_that_began_no_attempt_is_no_transaction(
    outcome: Outcome, start: StartReporting, sentry: SentryServer
) -> None:
    observers = start()
    attempt(observers, outcome, number=None)
    attempt(observers, Completed())
    assert [transaction["tags"]["outcome"] for transaction in sentry.transactions()] == ["completed"]


def test_many_chunks_of_one_delivery_are_one_transaction(start: StartReporting, sentry: SentryServer) -> None:
    with start().observe(PAY) as observation:
        for _ in range(3):
            observation.begun(1)
        observation.ended(Yielded(), None)
    assert len(sentry.transactions()) == 1


def test_the_transaction_continues_the_enqueuer_s_trace(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(), Completed(), headers={**TRACED, "x-other": "ignored"})
    [transaction] = sentry.transactions()
    trace = transaction["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"]) == (TRACE_ID, PARENT_SPAN_ID)


def test_an_enqueuer_that_was_not_sampled_is_followed(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    attempt(observers, Completed(), headers={"sentry-trace": f"{TRACE_ID}-{PARENT_SPAN_ID}-0"})
    attempt(observers, Completed())
    assert len(sentry.transactions()) == 1


def test_jobs_without_a_trace_get_one_each(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    attempt(observers, Completed())
    attempt(observers, Completed())
    assert len({transaction["contexts"]["trace"]["trace_id"] for transaction in sentry.transactions()}) == 2


async def test_jobs_that_run_at_once_keep_their_tags_apart(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    together = asyncio.Barrier(5)

    async def run(number: int) -> None:
        with observers.observe(PAY) as observation:
            observation.begun(number)
            sentry_sdk.set_tag("mine", str(number))
            await together.wait()
            observation.ended(Dead("ValueError: no"), ValueError())

    await asyncio.gather(*(run(number) for number in range(1, 6)))
    tags = [told["tags"] for told in [*sentry.transactions(), *sentry.events()]]
    assert sorted(int(tag["mine"]) for tag in tags) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(tag["mine"] == tag["attempt"] for tag in tags)


def test_without_tracing_there_are_events_but_no_transactions(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(sentry_traces_sample_rate=0), Dead("ValueError: no"), ValueError(), headers=TRACED)
    assert len(sentry.events()) == 1
    assert sentry.transactions() == []


TEXTS = st.text(max_size=100) | st.from_regex(r"[0-9a-f]{30,34}-[0-9a-f]{14,18}(-[012])?")


@settings(max_examples=100, deadline=None)
@given(trace=TEXTS, baggage=TEXTS | st.from_regex(r"(sentry-[a-z_]+=[^,]*,?)+", fullmatch=True))
def test_no_header_of_a_stranger_breaks_an_attempt(trace: str, baggage: str) -> None:
    attempt(SentryObserver(), Completed(), headers={"sentry-trace": trace, "baggage": baggage})
