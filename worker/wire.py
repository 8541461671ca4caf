"""arq's wire format, in JSON. Pure: another service may read and write messages with this and nothing else.

Nothing here can load a pickle: what is no JSON is `Unreadable`.
"""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, cast

from pydantic import JsonValue
from pydantic_core import from_json, to_json, to_jsonable_python

from worker.job import LONGEST_NAME, MAX_PAYLOAD_BYTES, NAME

JOB_KEY = "arq:job:"
IN_PROGRESS_KEY = "arq:in-progress:"
RESULT_KEY = "arq:result:"
ABORT_SET = "arq:abort"

MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 64 * 1024
"""A payload at its limit, with its envelope and headers."""
MAX_ENQUEUED_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: there are no later dates. Microseconds since 1970 are beyond it."""
UNREADABLE_NAME = "?"
ABORTED = "CancelledError"
"""What the text of a cancelled job's result begins with."""


@dataclass(slots=True)
class Message:
    """A job on its way."""

    name: str
    payload: bytes
    """The arguments as a JSON object in UTF-8, without `_headers`."""
    enqueued_ms: int
    from_outbox: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no message. `enqueued_ms` is minus a 63-bit hash of them, so that two of one id are two runs."""

    reason: str
    enqueued_ms: int
    # What is told of it, as of a message.
    name: ClassVar[str] = UNREADABLE_NAME
    payload: ClassVar[bytes] = b""
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})
    from_outbox: ClassVar[bool] = False


def encode(message: Message) -> bytes:
    """The bytes of `arq:job:{id}`. Raises ValueError where headers make it larger than a worker takes."""
    encoded = _encode(message)
    if len(encoded) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"The message of {message.name} has {len(encoded):,} bytes as it is written; the limit is "
            f"{MAX_MESSAGE_BYTES:,}: send fewer headers, and large numbers as text."
        )
    return encoded


def restamp(raw: bytes, *, enqueued_ms: int) -> bytes:
    """The same message from the outbox, with this enqueue time. Never raises: what can't be read is left as it is."""
    message = decode(raw)
    if isinstance(message, Unreadable):
        return raw
    return _encode(Message(message.name, message.payload, enqueued_ms, from_outbox=True, headers=message.headers))


def _encode(message: Message) -> bytes:
    arguments = message.payload
    if message.headers:
        arguments = to_json({**from_json(arguments), "_headers": dict(message.headers)})
    origin = b',"o":1' if message.from_outbox else b""
    return b'{"t":null,"f":%b,"a":[],"k":%b,"et":%d%b}' % (
        to_json(message.name),
        arguments,
        message.enqueued_ms,
        origin,
    )


def decode(raw: bytes) -> Message | Unreadable:
    """Read the bytes of `arq:job:{id}`. Never raises: what can't be read says why."""
    try:
        return _decode(raw)
    except (ValueError, RecursionError) as error:
        digest = int.from_bytes(hashlib.sha256(raw).digest()[:8]) >> 1
        return Unreadable(str(error), -max(1, digest))


def _decode(raw: bytes) -> Message:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"the message has {len(raw):,} bytes and the limit is {MAX_MESSAGE_BYTES:,}; "
            "store the data elsewhere and send its key"
        )
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError:
        # The parser's own text may quote the payload, and a pickle's bytes help nobody.
        raise ValueError("the message is no JSON; enqueue with a JSON serializer (arq's default is pickle)") from None
    if not isinstance(body, dict):
        raise ValueError("the message is no JSON object; enqueue through Ratchet or arq with a JSON serializer")  # noqa: TRY004 - a fault of data
    fields = cast("dict[str, Any]", body)
    name, arguments, enqueued_ms = fields.get("f"), fields.get("k"), fields.get("et")
    if not isinstance(name, str) or not _is_name(name[: LONGEST_NAME + 1]):
        raise ValueError("the message has no job name in 'f'; give the name of a job")
    if fields.get("a"):
        raise ValueError("the message has positional arguments in 'a'; pass the payload by keyword")
    if not isinstance(arguments, dict):
        raise ValueError("the message has no object in 'k'; pass the payload by keyword")  # noqa: TRY004 - a fault of data
    if type(enqueued_ms) is not int or not 0 <= enqueued_ms <= MAX_ENQUEUED_MS:
        raise ValueError("the message has no enqueue time in 'et'; give it in milliseconds since 1970")
    arguments = cast("dict[str, Any]", arguments)
    headers = arguments.pop("_headers", None)
    arguments.pop("_carrier", None)
    payload = to_json(arguments)
    if b"Infinity" in payload:
        # 1e400 is JSON, but beyond a double; written again it would be none.
        from_json(payload, allow_inf_nan=False)
    message = Message(name, payload, enqueued_ms, fields.get("o") == 1, _texts(headers) if headers else {})
    if len(raw) + len(payload) > MAX_PAYLOAD_BYTES:
        # 1E15 is 4 bytes and is written again as 18, and a direct job that has to wait says that it is the outbox's.
        # What nobody could read the next time isn't taken now.
        encode(replace(message, from_outbox=True))
    return message


@lru_cache(1_000)
def _is_name(text: str) -> bool:
    """Remembered, so `text` must not be long: whoever may enqueue chooses it."""
    return NAME.fullmatch(text) is not None


def _texts(headers: object) -> dict[str, str]:
    """The headers that are text; others are dropped, since a trace is never worth a job."""
    if not isinstance(headers, dict):
        return {}
    pairs = cast("dict[str, Any]", headers).items()
    return {key: value for key, value in pairs if isinstance(value, str)}


@dataclass(frozen=True, slots=True)
class Result:
    """What `arq:result:{id}` tells."""

    job_id: str
    queue: str
    message: Message | None
    attempt: int
    success: bool
    value: JsonValue
    started_ms: int
    finished_ms: int


def encode_result(result: Result) -> bytes:
    """The bytes of `arq:result:{id}`, with every field that arq's `Job.result_info()` reads."""
    message = result.message
    envelope = {
        "t": result.attempt,
        "f": message.name if message else UNREADABLE_NAME,
        "a": [],
        "k": None,
        "et": max(0, message.enqueued_ms) if message else 0,
        "s": result.success,
        "r": result.value,
        "st": result.started_ms,
        "ft": result.finished_ms,
        "q": result.queue,
        "id": result.job_id,
    }
    # The standard library's, since a handler's error may quote half a surrogate pair, which UTF-8 has no bytes for.
    encoded = json.dumps(to_jsonable_python(envelope, inf_nan_mode="null"), separators=(",", ":")).encode()
    # The payload is JSON already; it goes in as it stands.
    return encoded.replace(b'"k":null', b'"k":' + (message.payload if message else b"{}"), 1)


def serialize(value: dict[str, Any]) -> bytes:
    """As arq's `job_serializer`, in JSON. An error becomes `Type: text`. Raises TypeError for what is no JSON."""
    return json.dumps(value, default=_error_text, separators=(",", ":")).encode()


class JobFailed(Exception):
    """What `Job.result()` raises for a failed job, where its client has our deserializer: `EmailTaken: …`."""


def deserialize(raw: bytes) -> dict[str, Any]:
    """As arq's `job_deserializer`, in JSON. Raises ValueError for anything else, a pickle among it.

    A failed result becomes the exception that arq's `Job.result()` and `Job.abort()` expect to find.
    """
    value = cast("dict[str, Any]", json.loads(raw))
    if value.get("s") is False and isinstance(value.get("r"), str):
        text: str = value["r"]
        value["r"] = asyncio.CancelledError(text) if text.startswith(ABORTED) else JobFailed(text)
    return value


def _error_text(value: object) -> str:
    if isinstance(value, JobFailed):
        return str(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"{type(value).__name__} is no JSON; send text, numbers, lists or objects.")
