"""The decoder, given what no client of ours would send."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.oracles import check_message
from worker.wire import MAX_MESSAGE_BYTES

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
NUMBERS = st.integers(-(10**400), 10**400) | st.floats()
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "t": ANYTHING,
        "f": st.just("test.play") | ANYTHING,
        "a": st.just([]) | ANYTHING,
        "k": st.dictionaries(st.text(max_size=5) | st.just("_headers"), ANYTHING, max_size=3) | ANYTHING,
        "et": st.integers(0, 2**53) | NUMBERS,
        "o": st.just(1) | ANYTHING,
    },
)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(raw=FIELDS.map(lambda fields: json.dumps(fields).encode()) | st.binary(max_size=300))
@example(b'{"f":"a","k":{"x":"\\ud800"},"et":1}')
@example(b'{"f":"a","k":{"x":"\\u0000"},"et":1}')
@example(b'{"f":"a","k":{"x":-1e999},"et":1}')
@example(b'{"f":"a","k":{},"k":[],"et":1}')
@example(b'{"f":"a","k":{"x":' * 300 + b"1" + b"}" * 600)
def test_no_message_makes_the_decoder_raise(raw: bytes) -> None:
    check_message(raw)


def test_what_would_be_too_large_once_it_is_written_again_is_refused_at_once() -> None:
    """`1E15` is 4 bytes and comes out as 18: what could be read the first time could not the next."""
    numbers = b",".join([b"1E15"] * (MAX_MESSAGE_BYTES // 6))
    check_message(b'{"f":"a","k":{"x":[' + numbers + b']},"et":1}')


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(fields=FIELDS, cut=st.integers(0, 60), junk=st.binary(min_size=1, max_size=3))
def test_nor_does_one_that_was_damaged(fields: dict[str, Any], cut: int, junk: bytes) -> None:
    raw = json.dumps({"f": "test.play", "k": {"n": 1}, "et": 1} | fields).encode()
    check_message(raw[:cut] + junk + raw[cut + 1 :])


@pytest.mark.parametrize("depth", [100, 199, 200, 201, 10_000])
def test_nor_a_nest_of_any_depth(depth: int) -> None:
    check_message(b'{"f":"a","k":{"x":' + b"[" * depth + b"]" * depth + b'},"et":1}')
