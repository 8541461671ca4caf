"""What may be told of an error: its type and its frames. Its text may quote rows, payloads or addresses."""

import traceback
from typing import cast

MAX_ERRORS = 10
"""Of one chain or group; the rest would be repetition."""


def with_texts(error: BaseException) -> str:
    """As Python prints it. Where the error's own code raises at that, as `without_texts`."""
    try:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception:  # noqa: BLE001 - whatever an error's own code does
        return without_texts(error)


def without_texts(error: BaseException) -> str:
    """The frames and types of `error` and of what led to it, oldest first; source lines, but no error's text."""
    chain: list[str] = []
    current: BaseException | None = error
    while current is not None and len(chain) < MAX_ERRORS:
        chain.append(_one(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich led to\n".join(reversed(chain))


def _one(error: BaseException) -> str:
    kind = type(error)
    text = "".join(traceback.format_tb(error.__traceback__)) + f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        members = cast("tuple[BaseException, ...]", error.exceptions)
        text += "".join(f"\nwith\n{without_texts(member)}" for member in members[:MAX_ERRORS])
    return text


def error_name(error: BaseException | None, text: str) -> str:
    """The type of an error that an outcome tells of as `Type: text`."""
    if error is not None:
        return type(error).__name__
    name = text.partition(":")[0]
    return name if name.isidentifier() else "Error"
