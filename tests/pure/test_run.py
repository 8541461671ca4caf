"""What a handler is told of its run."""

from datetime import UTC, datetime

import pytest

from worker.run import CurrentRun


@pytest.mark.parametrize(("enqueued_ms", "key"), [(0, "invoice-7"), (1_700_000_000_000, "invoice-7:1700000000000")])
def test_the_idempotency_key_is_a_chosen_id_or_tells_jobs_of_one_id_apart(enqueued_ms: int, key: str) -> None:
    at = datetime(2023, 11, 14, tzinfo=UTC)
    runs = [CurrentRun("invoice-7", enqueued_ms, at, attempt, "pay", "arq:queue") for attempt in (1, 2)]
    assert [run.idempotency_key for run in runs] == [key, key]
