"""Outcomes as text, and what PostgreSQL's columns take."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from worker.errors import Permanent
from worker.outcome import describe
from worker.stored import MAX_STORED_BYTES, as_jsonb, as_text
from worker.wire import Result, encode_result

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


def test_an_error_is_told_by_type_and_text_at_most_2000_characters() -> None:
    assert describe(ValueError("no")) == "ValueError: no"
    assert describe(ValueError("x" * 5_000)) == "ValueError: " + "x" * 1_988


@given(JSON)
def test_json_is_stored_as_it_is(value: object) -> None:
    assert json.loads(as_jsonb(value, "result")) == value


@given(JSON, TEXT, TEXT)
def test_a_nul_anywhere_is_refused_and_what_only_looks_like_one_is_not(value: object, before: str, after: str) -> None:
    for nested in ([value, f"{before}\0{after}"], {f"{before}\0{after}": value}):
        with pytest.raises(Permanent, match="NUL"):
            as_jsonb(nested, "result")
    looks = f"{before}\\u0000{after}"
    assert json.loads(as_jsonb([value, looks], "result")) == [value, looks]


def test_the_limit_is_64_kib_of_json() -> None:
    assert len(as_jsonb("x" * (MAX_STORED_BYTES - 2), "result")) == MAX_STORED_BYTES
    with pytest.raises(Permanent, match="The handler's cursor has 65,537 bytes as JSON; the limit is 65,536"):
        as_jsonb("x" * (MAX_STORED_BYTES - 1), "cursor")


@given(st.text(st.characters()))
def test_any_text_becomes_text_that_postgresql_takes(text: str) -> None:
    stored = as_text(text)
    assert "\0" not in stored
    assert stored.encode() is not None
    if "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert stored == text


def nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_stored_can_be_read_and_told_again() -> None:
    stored = as_jsonb(nested(150), "result")
    assert from_json(stored) == nested(150)
    assert encode_result(Result("a", "q", None, 1, success=True, value=nested(150), started_ms=1, finished_ms=2))


@pytest.mark.parametrize("depth", [230, 260, 100_000])
def test_what_could_not_be_read_again_is_refused(depth: int) -> None:
    with pytest.raises(Permanent, match="The handler's result"):
        as_jsonb(nested(depth), "result")
