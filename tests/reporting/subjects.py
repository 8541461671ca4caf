import contextlib
from dataclasses import replace
from typing import Any

from worker.outcome import Outcome
from worker.reporting.observer import Observer, Subject

PAY = Subject(
    job_id="0192f0c1-aaaa",
    name="orders.pay",
    queue="arq:queue",
    enqueued_ms=1_700_000_000_000,
    latency_ms=40,
    payload=b'{"order_id":7}',
)
TRACE_ID = "771a43a4192642f0b136d5159a501700"
PARENT_SPAN_ID = "b0e6f15b45c36b12"
TRACED = {"sentry-trace": f"{TRACE_ID}-{PARENT_SPAN_ID}-1"}


def attempt(
    observer: Observer, outcome: Outcome, error: BaseException | None = None, *, number: int | None = 1, **changes: Any
) -> None:
    """One attempt from its begin to its end; `number=None`: it never began. `changes` are of the subject."""
    with observer.observe(replace(PAY, **changes)) as observation:
        if number is not None:
            observation.begun(number)
        observation.ended(outcome, error)


def raised(error: Exception) -> Exception:
    """Give `error` a traceback, whose innermost function is `fail`."""

    def fail() -> None:
        raise error

    with contextlib.suppress(Exception):
        fail()
    return error
