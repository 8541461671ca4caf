"""The numbers of docs/limits.md are those of the code."""

from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest

from tests.docs.blocks import ROOT
from worker.attempt import IMMEDIATE_RETRIES
from worker.driver import LOCK_TIMEOUT_MS
from worker.handler import MAX_PARTITIONS, ChunkedHandler, Policy
from worker.job import MAX_PAYLOAD_BYTES
from worker.outbox import MAX_KEY_BYTES
from worker.retry import RetryPolicy
from worker.settings import Settings
from worker.stored import MAX_STORED_BYTES

TEXT = (ROOT / "docs" / "limits.md").read_text()
CHUNKED: dict[str, Any] = {field.name: field.default for field in fields(ChunkedHandler)}
LEASE: int = Settings.model_fields["lease"].default


@pytest.mark.parametrize(
    "row",
    [
        f"| payload | {MAX_PAYLOAD_BYTES // 2**20} MiB as JSON |",
        f"| result, cursor, counts of a job | {MAX_STORED_BYTES // 2**10} KiB as JSON |",
        f"| `key` | {MAX_KEY_BYTES:,} bytes |",
        f"| failures before a job is dead | {RetryPolicy().attempts} |",
        f"| backoff | up to {RetryPolicy().cap // timedelta(hours=1)} h |",
        f"| timeout of an attempt, or of a chunk | {Policy().timeout // timedelta(seconds=1)} s |",
        f"| rows of a chunk | {CHUNKED['size']:,} at first (`size`), then as many as take "
        f"{CHUNKED['target'] // timedelta(seconds=1)} s",
        f"| partitions of a chunked job | {MAX_PARTITIONS:,} |",
        f"| time that a chunked job keeps its slot | {CHUNKED['yield_after'] // timedelta(seconds=1)} s",
        f"| wait for a run that another worker holds | {LOCK_TIMEOUT_MS // 1000} s, twice |",
        f"| immediate retries after a deadlock or a lost connection | {IMMEDIATE_RETRIES} |",
        f"within {LEASE + 5} s: a lease of {LEASE} s",
    ],
)
def test_a_number_is_the_codes(row: str) -> None:
    assert row in TEXT
