"""What PostgreSQL stores of a job beside its message: results and cursors as jsonb, errors as text. Pure."""

import re
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from worker.errors import Permanent

MAX_STORED_BYTES = 64 * 1024
NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""The escape of a NUL, and not an escaped backslash before `u0000`."""


def as_jsonb(value: object, what: str) -> str:
    """`value` as JSON that PostgreSQL's jsonb takes. Numbers that are no JSON (NaN, infinity) become null.

    Raises Permanent where it is no JSON, over 64 KiB, nested too deep to be read again, or holds NUL or a lone
    surrogate. `what` names it in the error.
    """
    if value is None:
        return "null"
    try:
        encoded = to_json(value, inf_nan_mode="null")
    except PydanticSerializationError as error:
        raise Permanent(f"The handler's {what} can't be written as JSON ({error}); return plain values.") from None
    if len(encoded) > MAX_STORED_BYTES:
        raise Permanent(
            f"The handler's {what} has {len(encoded):,} bytes as JSON; the limit is {MAX_STORED_BYTES:,}: "
            "store it and return its key."
        )
    if NUL.search(encoded):
        raise Permanent(f"The handler's {what} holds a NUL character, which PostgreSQL's jsonb refuses; take it out.")
    try:
        from_json(encoded)
    except ValueError:
        raise Permanent(f"The handler's {what} is nested too deep to be read again; return flatter values.") from None
    return encoded.decode()


def as_key(codec: TypeAdapter[Any], key: object, what: str) -> str:
    """A cursor, or a bound between partitions, as JSON from which `codec` reads it again.

    Raises Permanent where it can't, as of infinity, which JSON hasn't: the next chunk would begin at the wrong place.
    """
    try:
        encoded = as_jsonb(codec.dump_python(key, mode="json", warnings=False), what)
        if encoded != "null":
            codec.validate_json(encoded)
            return encoded
    except (PydanticSerializationError, ValidationError):
        pass  # their texts quote it
    raise Permanent(
        f"The handler's {what} is a {type(key).__name__} that can't be written as JSON and read again as its type; "
        "give the handler another type of cursor, or leave such rows out."
    )


def as_text(value: str) -> str:
    """`value` as PostgreSQL's text takes it: NUL and lone surrogates escaped."""
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
