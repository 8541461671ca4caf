"""Rows of a file against a pydantic type: many at a time, by a validator that was compiled once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from jobs.csv_rows import Row

PIECE = 1_000
"""Rows of one call of the validator, which lets no other thread run meanwhile: about half a millisecond."""

T = TypeVar("T")


def check(rows: Sequence[Row], adapter: TypeAdapter[list[T]], reason: Callable[[ErrorDetails], str]) -> list[T | str]:
    """For each row what it holds, or in words what is wrong: its own fault, or the `reason` of its first error."""
    found: list[T | str] = []
    for begin in range(0, len(rows), PIECE):
        piece = _check_piece(rows[begin : begin + PIECE], adapter, reason)
        found += piece
    return found


def _check_piece(
    rows: Sequence[Row], adapter: TypeAdapter[list[T]], reason: Callable[[ErrorDetails], str]
) -> Sequence[T | str]:
    try:
        return adapter.validate_python([row.fields for row in rows])
    except ValidationError:
        return _each(rows, adapter, reason)


def _each(rows: Sequence[Row], adapter: TypeAdapter[list[T]], reason: Callable[[ErrorDetails], str]) -> list[T | str]:
    """As `check`, where some row is bad. One with a fault has no fields, so it is no row of any type."""
    readable = [at for at, row in enumerate(rows) if not row.fault]
    found: list[T | str] = [row.fault for row in rows]
    try:
        good = adapter.validate_python([rows[at].fields for at in readable])
    except ValidationError as error:
        for fault in reversed(error.errors(include_url=False)):
            found[readable[int(fault["loc"][0])]] = reason(fault)
        readable = [at for at in readable if not found[at]]
        good = adapter.validate_python([rows[at].fields for at in readable])
    for at, value in zip(readable, good, strict=True):
        found[at] = value
    return found
