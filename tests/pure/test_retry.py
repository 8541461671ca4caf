"""How often a failed job is tried again, and after how long."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidPayload, Permanent
from worker.retry import RetryPolicy

HOUR = timedelta(hours=1)


def test_the_defaults_are_5_attempts_and_a_backoff_of_1_s_times_4_to_the_n_up_to_1_h() -> None:
    policy = RetryPolicy()
    assert policy.attempts == 5
    assert [policy.bound(failures).total_seconds() for failures in range(1, 9)] == [1, 4, 16, 64, 256, 1024, 3600, 3600]


@given(st.integers(1, 10**9), st.floats(1, 100), st.timedeltas(timedelta(0), HOUR), st.timedeltas(timedelta(0), HOUR))
def test_no_wait_is_over_the_bound_and_no_bound_over_the_cap(
    failures: int, factor: float, base: timedelta, cap: timedelta
) -> None:
    policy = RetryPolicy(base=base, cap=cap, factor=factor)
    assert timedelta(0) <= policy.delay(failures) <= policy.bound(failures) <= cap


def test_the_jitter_is_full_from_zero_to_the_bound() -> None:
    policy = RetryPolicy(base=HOUR, cap=HOUR)
    waits = [policy.delay(1) / HOUR for _ in range(1_000)]
    assert min(waits) < 0.1
    assert max(waits) > 0.9
    assert 0.4 < sum(waits) / len(waits) < 0.6


def test_it_is_hopeless_at_the_last_attempt_and_not_before() -> None:
    policy = RetryPolicy(attempts=3)
    assert [policy.is_hopeless(ValueError(), failures) for failures in (1, 2, 3, 4)] == [False, False, True, True]


@pytest.mark.parametrize("error", [Permanent("never"), InvalidPayload("broken"), KeyError("a")])
def test_what_no_retry_can_mend_is_hopeless_at_once(error: Exception) -> None:
    assert RetryPolicy(give_up_on=(LookupError,)).is_hopeless(error, 1)
    assert not RetryPolicy().is_hopeless(ValueError(), 1)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"base": -HOUR}, {"cap": -HOUR}, {"cap": timedelta.max}, {"factor": 0.5}, {"factor": math.nan}],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="RetryPolicy"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("errors", [ValueError, (ValueError()), ("ValueError",), [ValueError]])
def test_errors_to_give_up_on_are_a_tuple_of_classes(errors: Any) -> None:
    with pytest.raises(ValueError, match="give a tuple of exception classes"):
        RetryPolicy(give_up_on=errors)
