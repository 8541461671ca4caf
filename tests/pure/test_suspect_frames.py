"""What a worker and its child tell each other arrives as it was sent."""

from datetime import timedelta
from typing import get_args

import pytest

from worker.delivery import Report
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.suspects.frames import OUTCOMES, end_of, pack, report_of
from worker.wire import Message

MOMENT = timedelta(milliseconds=1500)
MESSAGE = Message("ping", b"{}", 1)


@pytest.mark.parametrize(
    "outcome",
    [
        Completed({"ß": [1, None, "\ud800"]}),
        Duplicate(None, failed="no"),
        Yielded(),
        Yielded(MOMENT, "held back"),
        Snoozed(MOMENT),
        Retrying(MOMENT, "Error: \ud800"),
        Released("busy", MOMENT),
        Cancelled("asked"),
        Dead("Error: no"),
    ],
)
def test_a_report_comes_back_whole(outcome: Outcome) -> None:
    report = Report(outcome, MESSAGE, 3, 10, 20, b'{"t":"\xff"}', has_begun=False)
    ended = end_of(7, report)
    assert pack(ended)
    assert report_of(ended, MESSAGE) == report


def test_every_outcome_can_be_told() -> None:
    assert set(OUTCOMES.values()) == set(get_args(Outcome))
