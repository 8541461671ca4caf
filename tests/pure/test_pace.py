"""The size of the next chunk: the time a row takes is smoothed, and the size follows it, between bounds."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.pace import ALPHA, Pace, Sizes, asked_size, resumed_size

SIZES = Sizes(timedelta(seconds=1), 100, 10_000)


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("took", "size"),
    [
        (0.93, 1_000),  # within 0.9 and 0.95 of the target
        (0.9, 1_000),
        (0.95, 1_000),
        (0.1, 1_200),  # never more than 1.2 times as many
        (0.85, 1_117),  # 1,000 * 0.95 / 0.85
        (1.9, 500),
        (3.8, 250),
        (60, 100),  # 15, but for the bound
    ],
)
def test_after_one_chunk_the_size_is_that_of_the_target(took: float, size: int) -> None:
    assert Pace(1_000).after(1_000, 1_000, s(took), SIZES).size == size


def test_the_time_of_a_row_is_an_exponential_moving_average() -> None:
    pace = Pace(1_000).after(1_000, 1_000, s(1), SIZES).after(500, 500, s(1), SIZES)
    assert pace.row_seconds == pytest.approx(ALPHA * 0.002 + (1 - ALPHA) * 0.001)
    assert pace.rate == pytest.approx(ALPHA * 500 + (1 - ALPHA) * 1_000)


@given(st.floats(1e-5, 1e-2), st.integers(100, 10_000))
def test_with_rows_that_cost_the_same_it_settles_at_the_target_or_at_a_bound(cost: float, first: int) -> None:
    pace = Pace(first)
    for _ in range(40):
        pace = pace.after(pace.size, pace.size, s(cost * pace.size), SIZES)
    settled = pace.after(pace.size, pace.size, s(cost * pace.size), SIZES)
    assert settled.size == pace.size
    assert 0.89 <= cost * pace.size <= 0.96 or pace.size in {100, 10_000}


@given(st.integers(100, 10_000), st.floats(0, 1e4), st.integers(0, 10_000))
def test_whatever_happens_the_size_stays_between_the_bounds(size: int, took: float, done: int) -> None:
    assert 100 <= Pace(size).after(size, done, s(took), SIZES).size <= 10_000


def test_the_smallest_chunk_can_grow() -> None:
    sizes = Sizes(timedelta(seconds=1), 1, 20)
    assert Pace(1).after(1, 1, s(0.01), sizes).size == 2


def test_without_a_target_the_size_stays() -> None:
    assert Pace(1_000).after(1_000, 1_000, s(60), Sizes(None, 100, 10_000)).size == 1_000


@pytest.mark.parametrize(("failures", "size"), [(0, 1_000), (1, 500), (2, 250), (4, 100), (50, 100)])
def test_a_chunk_that_failed_is_tried_with_fewer_rows(failures: int, size: int) -> None:
    assert asked_size(1_000, failures, SIZES) == size


def test_a_run_whose_size_is_below_todays_bound_keeps_it() -> None:
    assert asked_size(50, 3, SIZES) == 50


def test_time_left_is_that_of_the_rows_left_at_the_smoothed_rate() -> None:
    pace = Pace(1_000).after(1_000, 500, s(2), SIZES)
    assert pace.time_left_s(500, 1_500) == pytest.approx(4)
    assert pace.time_left_s(500, 500) == 0
    assert pace.time_left_s(500, None) is None  # nobody has said how many there are
    assert pace.time_left_s(500, 400) is None  # the estimate was too low
    assert Pace(1_000).time_left_s(0, 10) is None


@pytest.mark.parametrize(("kept", "size"), [(None, 1_000), (500, 500), (20_000, 10_000), (50, 100)])
def test_a_size_that_a_run_has_kept_is_held_to_the_bounds_of_today(kept: int | None, size: int) -> None:
    assert resumed_size(kept, 1_000, SIZES) == size


def test_without_a_target_the_size_is_the_handlers() -> None:
    assert resumed_size(20_000, 100, Sizes(None, 1, 50_000)) == 100
