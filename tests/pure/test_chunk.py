"""What a chunk did, and how chunks add up."""

from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from worker.chunk import Chunk, Step
from worker.errors import Permanent

COUNTS = st.dictionaries(st.sampled_from(["read", "inserted", "rejected"]), st.integers(0, 10**6))


@given(st.lists(COUNTS))
def test_counts_add_up_over_all_chunks(chunks: list[dict[str, int]]) -> None:
    totals: dict[str, JsonValue] = {}
    for counts in chunks:
        totals = Step(None, counts=counts).added_to(totals)
    names = {name for counts in chunks for name in counts}
    assert totals == {name: sum(counts.get(name, 0) for counts in chunks) for name in names}


def test_another_result_replaces_what_stood_there_and_leaves_the_counts() -> None:
    first = Step(1, counts={"read": 2}, result={"path": "a"}).added_to({})
    assert Step(None, counts={"read": 3}, result={"path": "b"}).added_to(first) == {"read": 5, "path": "b"}


@pytest.mark.parametrize("sum_", [Decimal(150), 1.5, "150"])
def test_a_count_that_wouldnt_add_up_is_refused(sum_: Any) -> None:
    with pytest.raises(Permanent, match=r"A chunk counts cents=.*give int"):
        Step(None, counts={"cents": sum_}).added_to({"cents": 150})


def test_a_step_is_what_the_chunk_says_it_did() -> None:
    step = Chunk(cursor=5, size=10).step(15, done=10, total=100, counts={"read": 10}, result={"path": "a"})
    assert step == Step(15, 10, 100, {"read": 10}, {"path": "a"})


def test_without_a_cursor_nothing_is_left() -> None:
    assert Chunk(cursor=5, size=10).step(None) == Step(None, 0, None, {}, {})


def test_neither_can_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Chunk(cursor=5, size=10).cursor = 6  # type: ignore[misc]  # that is the point
    with pytest.raises(FrozenInstanceError):
        Step(5).done = 6  # type: ignore[misc]  # that is the point
