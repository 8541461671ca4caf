"""arq's wire format in JSON: what is written, what is read, and what is told of what can't be."""

import json
import pickle
import tracemalloc
from hashlib import sha256
from typing import Any

import arq.jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import wire
from worker.wire import (
    MAX_ENQUEUED_MS,
    MAX_MESSAGE_BYTES,
    Message,
    Result,
    Unreadable,
    decode,
    deserialize,
    encode,
    encode_result,
    restamp,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = Message("test.play", b'{"text":"a"}', 1_700_000_000_000)


def envelope(**parts: Any) -> bytes:
    return json.dumps({"t": None, "f": "test.play", "a": [], "k": {}, "et": 1, **parts}).encode()


def test_a_message_is_arq_s_envelope() -> None:
    assert json.loads(encode(MESSAGE)) == {
        "t": None,
        "f": "test.play",
        "a": [],
        "k": {"text": "a"},
        "et": 1_700_000_000_000,
    }


def test_a_message_from_the_outbox_says_so_and_arq_ignores_it() -> None:
    raw = encode(Message("test.play", b"{}", 1, from_outbox=True))
    assert json.loads(raw)["o"] == 1
    job = arq.jobs.deserialize_job(raw, deserializer=json.loads)
    assert (job.function, job.kwargs) == ("test.play", {})


@given(st.dictionaries(st.text().filter(lambda key: key not in {"_headers", "_carrier"}), JSON, max_size=4))
def test_any_payload_makes_the_round_trip(payload: dict[str, Any]) -> None:
    message = decode(envelope(k=payload))
    assert isinstance(message, Message)
    assert json.loads(message.payload) == payload
    assert decode(encode(message)) == message
    assert decode(restamp(encode(message), enqueued_ms=7)) == Message("test.play", message.payload, 7, from_outbox=True)


def test_headers_travel_in_the_payload_and_are_taken_out_of_it() -> None:
    raw = encode(Message("test.play", b'{"text":"a"}', 1, headers={"sentry-trace": "x"}))
    assert json.loads(raw)["k"] == {"text": "a", "_headers": {"sentry-trace": "x"}}
    assert decode(raw) == Message("test.play", b'{"text":"a"}', 1, headers={"sentry-trace": "x"})


def test_without_headers_a_message_has_none() -> None:
    assert b"_headers" not in encode(MESSAGE)


@pytest.mark.parametrize("headers", [None, [], "text", {"a": 1}, {"a": None}, {"a": {"b": "c"}}])
def test_headers_that_are_no_texts_are_dropped_since_a_trace_is_never_worth_a_job(headers: object) -> None:
    assert decode(envelope(k={"_headers": headers})) == Message("test.play", b"{}", 1)


def test_opentelemetry_s_carrier_is_tolerated() -> None:
    raw = envelope(k={"text": "a", "_carrier": {"traceparent": "00-…"}})
    assert decode(raw) == Message("test.play", b'{"text":"a"}', 1)


def test_nothing_is_remembered_of_names_that_are_none() -> None:
    tracemalloc.start()
    try:
        for number in range(30):
            assert isinstance(decode(json.dumps({"f": f"{number}" * 500_000, "k": {}, "et": 1}).encode()), Unreadable)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000, "one of them at most"


def test_a_pickle_is_never_loaded_and_the_reason_says_what_to_do() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return pytest.fail, ("the pickle was loaded",)

    raw = pickle.dumps({"f": "test.play", "a": (), "k": {"x": Bomb()}, "et": 1, "t": None})
    message = decode(raw)
    assert isinstance(message, Unreadable)
    assert message.reason == "the message is no JSON; enqueue with a JSON serializer (arq's default is pickle)"
    with pytest.raises(ValueError, match="utf-8"):
        deserialize(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"f":"a","k":{"x":' + b"[" * 250 + b"]" * 250 + b'},"et":1}', "no JSON"),
        (b'{"f":"a","k":{"x":NaN},"et":1}', "no JSON"),
        (b'{"f":"a","k":{"x":' + b"9" * 5000 + b'},"et":1}', "no JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (envelope(f=None), "no job name in 'f'"),
        (envelope(f=""), "no job name in 'f'"),
        (envelope(f="a b"), "no job name in 'f'"),
        (envelope(f="x" * 201), "no job name in 'f'"),
        (envelope(f=["a"]), "no job name in 'f'"),
        (envelope(a=[1]), "positional arguments in 'a'"),
        (envelope(a={"x": 1}), "positional arguments in 'a'"),
        (envelope(k=None), "no object in 'k'"),
        (envelope(k=[]), "no object in 'k'"),
        (envelope(et=None), "no enqueue time in 'et'"),
        (envelope(et="1"), "no enqueue time in 'et'"),
        (envelope(et=1.0), "no enqueue time in 'et'"),
        (envelope(et=True), "no enqueue time in 'et'"),
        (envelope(et=-1), "no enqueue time in 'et'"),
        (envelope(et=253_402_300_800_000), "no enqueue time in 'et'"),
        (envelope(et=1_700_000_000_000_000), "in milliseconds since 1970"),
        (b'{"f":"a","k":{}}', "no enqueue time in 'et'"),
        (envelope(k={"x": "x" * MAX_MESSAGE_BYTES}), "the limit is 1,114,112"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_message_is_unreadable_and_the_reason_says_why(raw: bytes, reason: str) -> None:
    message = decode(raw)
    assert isinstance(message, Unreadable)
    assert reason in message.reason
    assert restamp(raw, enqueued_ms=5) == raw


def test_a_message_that_could_not_say_that_it_is_the_outboxs_is_none() -> None:
    """A direct job that fails is written again so. What nobody could read then isn't taken before."""

    def sized(size: int) -> bytes:
        bare = len(encode(Message("a", b'{"x":""}', 1_700_000_000_000)))
        return encode(Message("a", b'{"x":"%b"}' % (b"x" * (size - bare)), 1_700_000_000_000))

    longest = MAX_MESSAGE_BYTES - len(b',"o":1')
    assert len(restamp(sized(longest), enqueued_ms=1_700_000_000_000)) == MAX_MESSAGE_BYTES
    assert isinstance(decode(sized(longest + 1)), Unreadable)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_reader_raise(raw: bytes) -> None:
    assert isinstance(decode(raw), Unreadable | Message)


def test_a_reason_never_quotes_the_message() -> None:
    for raw in (b'{"secret', envelope(f="secret word"), envelope(k="secret"), envelope(a=["secret"]), b'"secret"'):
        message = decode(raw)
        assert isinstance(message, Unreadable)
        assert "secret" not in message.reason


def test_an_unreadable_message_s_identity_is_minus_a_63_bit_hash_of_its_bytes() -> None:
    """So that two of one id are two, and none is taken for a readable one's."""
    for raw in (b"one", b"two"):
        message = decode(raw)
        assert isinstance(message, Unreadable)
        assert message.enqueued_ms == -(int(sha256(raw).hexdigest()[:16], 16) >> 1)
        assert -(2**63) < message.enqueued_ms < 0
    assert decode(b"one").enqueued_ms != decode(b"two").enqueued_ms


def test_extra_keys_of_the_envelope_are_ignored() -> None:
    assert decode(envelope(x=1, o=0)) == Message("test.play", b"{}", 1)


def test_an_empty_list_of_positional_arguments_may_be_left_out() -> None:
    assert decode(b'{"f":"a","k":{},"et":0}') == Message("a", b"{}", 0)


def test_the_largest_payload_fits_with_its_headers_and_a_larger_message_is_refused() -> None:
    payload = json.dumps({"x": "x" * (1024 * 1024 - 8)}).encode()
    headers = {"baggage": "b" * 8_192, "sentry-trace": "t" * 100}
    raw = encode(Message("x" * 200, payload, MAX_ENQUEUED_MS, from_outbox=True, headers=headers))
    assert isinstance(decode(raw), Message)
    with pytest.raises(ValueError, match="send fewer headers"):
        encode(Message("a", payload, 1, headers={"baggage": "b" * 70_000}))


def test_restamping_changes_the_enqueue_time_and_nothing_else() -> None:
    message = Message("test.play", b'{"text":"\\u0000\xc3\xa9"}', 1, from_outbox=True, headers={"a": "b"})
    assert decode(restamp(encode(message), enqueued_ms=2)) == Message(
        "test.play", b'{"text":"\\u0000\xc3\xa9"}', 2, from_outbox=True, headers={"a": "b"}
    )


# --- results ----------------------------------------------------------------------------------------------------------


def result(*, success: bool = True, value: Any = None, message: Message | None = MESSAGE) -> bytes:
    return encode_result(Result("an id", "arq:queue", message, 2, success, value, 1_000, 2_000))


def test_a_result_has_every_field_that_arq_s_result_info_reads() -> None:
    info = arq.jobs.deserialize_result(result(value={"a": 1}), deserializer=json.loads)
    assert (info.function, info.kwargs, info.job_try, info.success, info.result) == (
        "test.play",
        {"text": "a"},
        2,
        True,
        {"a": 1},
    )
    assert (info.job_id, info.queue_name, info.start_time.timestamp()) == ("an id", "arq:queue", 1.0)


def test_a_failed_result_is_false_and_a_text_which_our_deserializer_makes_an_error() -> None:
    raw = result(success=False, value="EmailTaken: it is taken")
    assert (json.loads(raw)["s"], json.loads(raw)["r"]) == (False, "EmailTaken: it is taken")
    failed = deserialize(raw)["r"]
    assert isinstance(failed, wire.JobFailed)
    assert str(failed) == "EmailTaken: it is taken"


@pytest.mark.parametrize("value", ["ValueError: \ud800", {"name": "\udce9.csv"}, float("nan"), [float("inf")]])
def test_a_result_is_written_whatever_it_holds(value: Any) -> None:
    """A file name with surrogates in an error's text must not stop the worker that tells of it."""
    raw = result(success=False, value=value)
    assert raw.isascii()
    assert b"NaN" not in raw
    assert b"Infinity" not in raw


def test_the_result_of_an_unreadable_message_can_be_read() -> None:
    info = arq.jobs.deserialize_result(result(success=False, value="x", message=None), deserializer=json.loads)
    assert (info.function, info.kwargs) == ("?", {})


def test_arq_s_serializer_in_json_refuses_what_is_no_json() -> None:
    with pytest.raises(TypeError, match="object is no JSON"):
        wire.serialize({"x": object()})
    assert wire.serialize({"r": ValueError("no")}) == b'{"r":"ValueError: no"}'


def test_a_number_beyond_a_double_is_unreadable_and_a_text_that_reads_so_is_not() -> None:
    assert isinstance(decode(b'{"f":"any","a":[],"k":{"n":1e400},"et":1}'), Unreadable)
    assert isinstance(decode(b'{"f":"any","a":[],"k":{"n":"Infinity"},"et":1}'), Message)
