"""Cron: a job and its times."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.handler import Handler
from worker.job import Job
from worker.schedule import Cron


class Report(Job, name="test.report"):
    """Has a handler."""


class Other(Job, name="test.other"):
    """Has none."""


class Renamed(Job, name="test.renamed", aliases=("test.report",)):
    """Was called otherwise."""


async def report(job: Job, session: AsyncSession) -> None:
    """Do nothing."""


HANDLERS = (Handler(Report, report),)


def entry_of(crontab: str = "* * * * *", **options: Any) -> Cron:
    return Cron(Report(), crontab, **options)


def first(cron: Cron, after: datetime, count: int) -> Iterator[str]:
    return (tick.isoformat(timespec="minutes") for tick in islice(cron.ticks_after(after), count))


def test_an_entry_is_named_after_its_job_unless_given_a_name() -> None:
    assert Cron(Report(), "* * * * *").name == "test.report"
    assert Cron(Report(), "* * * * *", name="hourly").name == "hourly"


def test_an_entry_that_is_named_after_its_job_went_by_its_aliases() -> None:
    assert Cron(Renamed(), "* * * * *").names == ["test.renamed", "test.report"]
    assert Cron(Renamed(), "* * * * *", name="hourly").names == ["hourly"]


def test_no_entry_goes_by_a_name_that_another_went_by() -> None:
    schedule = [Cron(Renamed(), "* * * * *"), Cron(Renamed(), "* * * * *", name="test.report")]
    with pytest.raises(ValueError, match=r"Two cron entries are named 'test\.report'; give one of them a name"):
        App([Handler(Renamed, report)], schedule=schedule)


def test_times_are_of_the_entry_s_time_zone() -> None:
    cron = Cron(Report(), "30 3 * * *", tz="Asia/Tokyo")
    assert list(first(cron, datetime(2026, 1, 1, tzinfo=UTC), 2)) == [
        "2026-01-01T18:30+00:00",
        "2026-01-02T18:30+00:00",
    ]


def test_a_time_that_the_clock_skips_runs_right_after_it() -> None:
    """On 29 March 2026 Berlin's clock goes from 2:00 to 3:00, at 1:00 UTC."""
    cron = Cron(Report(), "30 2 * * *", tz="Europe/Berlin")
    ticks = list(first(cron, datetime(2026, 3, 28, 12, tzinfo=UTC), 2))
    assert ticks == ["2026-03-29T01:00+00:00", "2026-03-30T00:30+00:00"]


def test_a_time_that_the_clock_repeats_runs_once() -> None:
    """On 25 October 2026 Berlin's clock goes back from 3:00 to 2:00, at 1:00 UTC."""
    cron = Cron(Report(), "30 2 * * *", tz="Europe/Berlin")
    ticks = list(first(cron, datetime(2026, 10, 24, 12, tzinfo=UTC), 2))
    assert ticks == ["2026-10-25T00:30+00:00", "2026-10-26T01:30+00:00"]


def test_in_the_hour_that_the_clock_repeats_no_tick_lies_in_the_past() -> None:
    """Else the schedule would spin: its next tick would never be ahead of it."""
    cron = Cron(Report(), "30 2 * * *", tz="Europe/Berlin")
    in_the_second_pass = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert list(first(cron, in_the_second_pass, 1)) == ["2026-10-26T01:30+00:00"]
    assert cron.newest_tick(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), in_the_second_pass) is None


def test_an_hourly_entry_runs_every_hour_whatever_the_clock_does() -> None:
    cron = Cron(Report(), "0 * * * *", tz="Europe/Berlin")
    ticks = list(islice(cron.ticks_after(datetime(2026, 10, 24, 20, tzinfo=UTC)), 12))
    assert {later - earlier for earlier, later in pairwise(ticks)} == {timedelta(hours=1)}


MOMENTS = st.integers(0, 2 * 365 * 24 * 60).map(
    lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)


@given(
    MOMENTS,
    st.sampled_from(["* * * * *", "30 2 * * *", "0 */2 * * *", "15 1-3 * * 0", "*/7 2 25 10 *", "59 23 31 12 *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]),
)
def test_ticks_ascend_and_lie_after_the_moment(moment: datetime, crontab: str, tz: str) -> None:
    ticks = list(islice(Cron(Report(), crontab, tz=tz).ticks_after(moment), 3))
    assert ticks[0] > moment
    assert ticks == sorted(set(ticks))


def test_the_newest_of_the_ticks_missed_within_the_grace() -> None:
    cron = Cron(Report(), "*/10 * * * *", grace=timedelta(minutes=30))
    until = datetime(2026, 1, 1, 12, 5, tzinfo=UTC)
    long_ago = datetime(2025, 1, 1, tzinfo=UTC)
    assert cron.newest_tick(long_ago, until) == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert cron.newest_tick(datetime(2026, 1, 1, 12, tzinfo=UTC), until) is None
    assert cron.newest_tick(until, long_ago) is None


@given(
    MOMENTS,
    st.integers(1, 20 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes)),
    st.sampled_from(["30 2 * * *", "0 */2 * * *", "15 1-3 * * 0", "59 23 31 12 *"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
@example(datetime(2026, 10, 25, 1, 10, tzinfo=UTC), timedelta(hours=3), "30 2 * * *", "Europe/Berlin")
@example(datetime(2026, 3, 29, 1, 10, tzinfo=UTC), timedelta(hours=3), "30 2 * * *", "Europe/Berlin")
def test_the_newest_is_the_last_of_all(until: datetime, missed: timedelta, crontab: str, tz: str) -> None:
    cron = Cron(Report(), crontab, tz=tz, grace=timedelta(days=30))
    all_of_them = takewhile(lambda tick: tick <= until, cron.ticks_after(until - missed))
    assert cron.newest_tick(until - missed, until) == max(all_of_them, default=None)


def test_a_year_of_missed_minutes_is_not_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, ticks_after = list[datetime](), Cron.ticks_after

    def counting(self: Cron, moment: datetime) -> Iterator[datetime]:
        for tick in ticks_after(self, moment):
            seen.append(tick)
            yield tick

    monkeypatch.setattr(Cron, "ticks_after", counting)
    until = datetime(2027, 1, 1, tzinfo=UTC)
    cron = Cron(Report(), "* * * * *", grace=timedelta(days=365))
    assert cron.newest_tick(until - timedelta(days=365), until) == until
    assert len(seen) < 100


@pytest.mark.parametrize(("missed_for", "is_due"), [(59, True), (60, False), (61, False)])
def test_a_tick_is_made_up_for_if_it_is_younger_than_its_grace(missed_for: int, is_due: bool) -> None:  # noqa: FBT001
    cron = Cron(Report(), "0 3 * * *", grace=timedelta(minutes=1))
    three = datetime(2026, 1, 1, 3, tzinfo=UTC)
    found = cron.newest_tick(three - timedelta(days=1), three + timedelta(seconds=missed_for))
    assert found == (three if is_due else None)


@pytest.mark.parametrize(("late", "is_due"), [(0, True), (0.05, True), (29, True), (30, False), (60, False)])
def test_without_a_grace_a_punctual_tick_runs_and_a_missed_one_never(late: float, is_due: bool) -> None:  # noqa: FBT001
    """Nobody looks in the very moment of a tick, so a grace of zero alone would let none run."""
    cron = Cron(Report(), "0 3 * * *", grace=timedelta(0))
    three = datetime(2026, 1, 1, 3, tzinfo=UTC)
    found = cron.newest_tick(three - timedelta(days=1), three + timedelta(seconds=late))
    assert found == (three if is_due else None)


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        ({"crontab": "* * * *"}, "test.report has the crontab '* * * *'"),
        ({"crontab": "61 * * * *"}, "Bad minute"),
        ({"crontab": "0 0 30 2 *"}, "Bad day-of-month"),
        ({"tz": "Mars/Olympus"}, "the time zone 'Mars/Olympus'; use an IANA name"),
        ({"tz": "America"}, "the time zone 'America'"),
        ({"tz": "../../etc/passwd"}, "the time zone"),
        ({"tz": ""}, "the time zone ''"),
        ({"name": "with space"}, "'with space'"),
        ({"grace": timedelta(seconds=-1)}, "a grace of -1 day, 23:59:59"),
        ({"grace": 3600}, "test.report has grace=3600; give a timedelta"),
        ({"grace": timedelta.max}, "give a time of zero to 3,650 days"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_a_sentence(entry: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ValueError, match=re.escape(refusal)):
        entry_of(**entry)


def test_app_refuses_two_entries_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"Two cron entries are named 'test\.report'"):
        App(HANDLERS, [Cron(Report(), "0 1 * * *"), Cron(Report(), "0 2 * * *")])
    schedule = [Cron(Report(), "0 1 * * *"), Cron(Report(), "0 2 * * *", name="again")]
    assert App(HANDLERS, schedule).schedule == tuple(schedule)


def test_app_refuses_an_entry_whose_job_has_no_handler() -> None:
    with pytest.raises(ValueError, match=r"enqueues 'test\.other', which has no handler"):
        App(HANDLERS, [Cron(Other(), "0 1 * * *")])


def test_app_refuses_two_handlers_of_one_job() -> None:
    with pytest.raises(ValueError, match=r"'test\.report' has two handlers"):
        App([*HANDLERS, *HANDLERS])


def test_cron_s_attributes_are_those_of_its_arguments() -> None:
    cron = Cron(Report(), "0 1 * * *", "n", "Asia/Tokyo", timedelta(0))
    assert (cron.job, cron.crontab, cron.name, cron.tz, cron.grace) == (
        Report(),
        "0 1 * * *",
        "n",
        "Asia/Tokyo",
        timedelta(0),
    )


def test_an_entry_wants_a_job_that_can_be_enqueued() -> None:
    kind: Any = Report
    with pytest.raises(ValueError, match=r"A cron entry got <class .*Report'>; give a job, as in Cron"):
        Cron(kind, "* * * * *")

    class Nameless(Job): ...

    with pytest.raises(ValueError, match="Nameless has no job name"):
        Cron(Nameless(), "* * * * *", name="nameless")
