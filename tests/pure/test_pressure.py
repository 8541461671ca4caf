"""When chunked jobs leave PostgreSQL alone."""

from datetime import timedelta

import pytest

from worker.pressure import Ceiling, Pressure

CEILING = Ceiling(timedelta(seconds=10), timedelta(hours=1), 50)
OVER = Pressure(timedelta(seconds=11), timedelta(minutes=61), 51)


@pytest.mark.parametrize(
    ("pressure", "reason"),
    [
        (
            Pressure(replication_lag=OVER.replication_lag),
            "a standby is 11 s behind, more than 10 s (WORKER_MAX_REPLICATION_LAG)",
        ),
        (
            Pressure(transaction_age=OVER.transaction_age),
            "a transaction has been open for 3,660 s, more than 3,600 s (WORKER_MAX_TRANSACTION_AGE)",
        ),
        (
            Pressure(waiting_locks=OVER.waiting_locks),
            "51 backends wait for a lock, more than 50 (WORKER_MAX_WAITING_LOCKS)",
        ),
    ],
)
def test_over_a_ceiling_there_is_a_reason_which_names_its_setting(pressure: Pressure, reason: str) -> None:
    assert CEILING.reason(pressure) == reason


@pytest.mark.parametrize("pressure", [Pressure(), Pressure(timedelta(seconds=10), timedelta(hours=1), 50)])
def test_at_a_ceiling_or_where_nothing_is_told_there_is_none(pressure: Pressure) -> None:
    assert CEILING.reason(pressure) is None


def test_a_ceiling_of_zero_isnt_looked_at() -> None:
    assert Ceiling(timedelta(0), timedelta(0), 0).reason(OVER) is None
