"""Cron monitors: one check-in a run of a cron entry, open until its outcome is final."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reporting.conftest import StartReporting
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import PAY, attempt, raised
from worker.job import Job
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Yielded
from worker.reporting.monitors import slug
from worker.reporting.trace import CRON_HEADER
from worker.schedule import Cron

WAIT = timedelta(seconds=4)
NIGHTLY = {CRON_HEADER: "nightly.report"}


class Report(Job, name="sales.report"):
    pass


SCHEDULE = (Cron(Report(), "30 3 * * *", name="nightly.report", tz="Europe/Berlin"),)


def statuses(sentry: SentryServer) -> list[str]:
    return [check_in["status"] for check_in in sentry.check_ins()]


def test_a_cron_job_checks_in_with_its_entry_s_name_crontab_and_time_zone(
    start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(schedule=SCHEDULE), Completed(), headers=NIGHTLY)
    began, ended = sentry.check_ins()
    assert (began["status"], ended["status"]) == ("in_progress", "ok")
    assert began["check_in_id"] == ended["check_in_id"]
    assert began["monitor_slug"] == "nightly-report"
    assert began["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "30 3 * * *"},
        "timezone": "Europe/Berlin",
    }


def test_a_job_that_no_cron_entry_enqueued_checks_in_nowhere(start: StartReporting, sentry: SentryServer) -> None:
    attempt(start(schedule=SCHEDULE), Completed())
    assert len(sentry.transactions()) == 1
    assert sentry.check_ins() == []


def test_a_failure_that_is_tried_again_keeps_the_check_in_open_in_whichever_worker(
    start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(schedule=SCHEDULE), Retrying(WAIT, "ValueError: no"), raised(ValueError()), headers=NIGHTLY)
    attempt(start(schedule=SCHEDULE), Completed(), number=2, headers=NIGHTLY)
    assert statuses(sentry) == ["in_progress", "in_progress", "ok"]
    assert len({check_in["check_in_id"] for check_in in sentry.check_ins()}) == 1


def test_the_chunks_of_one_delivery_check_in_once(start: StartReporting, sentry: SentryServer) -> None:
    with start(schedule=SCHEDULE).observe(replace(PAY, headers=NIGHTLY)) as observation:
        for _ in range(3):
            observation.begun(1)
        observation.ended(Completed(), None)
    assert statuses(sentry) == ["in_progress", "ok"]


def test_two_runs_are_two_check_ins(start: StartReporting, sentry: SentryServer) -> None:
    observers = start(schedule=SCHEDULE)
    attempt(observers, Completed(), headers=NIGHTLY, enqueued_ms=1)
    attempt(observers, Completed(), headers=NIGHTLY, enqueued_ms=2)
    assert len({check_in["check_in_id"] for check_in in sentry.check_ins()}) == 2


@pytest.mark.parametrize(
    ("outcome", "closed"),
    [
        (Dead("ValueError: no"), ["error"]),
        (Cancelled("no"), ["ok"]),
        (Duplicate(), ["ok"]),
        (Duplicate(failed="ValueError: no"), ["error"]),
        (Released("the worker stops"), []),
        (Yielded(), []),
    ],
)
def test_a_final_outcome_closes_the_check_in_and_no_other_does(
    outcome: Outcome, closed: list[str], start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(schedule=SCHEDULE), outcome, number=None, headers=NIGHTLY)
    assert statuses(sentry) == closed


def test_an_entry_that_this_worker_doesn_t_know_checks_in_without_a_schedule(
    start: StartReporting, sentry: SentryServer
) -> None:
    attempt(start(), Completed(), headers=NIGHTLY)
    assert ["monitor_config" in check_in for check_in in sentry.check_ins()] == [False, False]


def test_entries_whose_names_look_alike_to_sentry_have_monitors_of_their_own(
    start: StartReporting, sentry: SentryServer
) -> None:
    names = ("nightly.report", "nightly-report", "nightly:other")
    schedule = tuple(Cron(Report(), "30 3 * * *", name=name) for name in names)
    for name in names:
        attempt(start(schedule=schedule), Completed(), headers={CRON_HEADER: name})
    slugs = [check_in["monitor_slug"] for check_in in sentry.check_ins()]
    assert len(set(slugs)) == 3
    assert slugs[-1] == "nightly-other"


@given(st.text())
def test_any_entry_has_a_slug_that_sentry_takes(name: str) -> None:
    for made in slug(name), slug(name, alone=False):
        assert 0 < len(made) <= 50
        assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
