"""A row of orders.import, checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from pydantic import PlainValidator, TypeAdapter
from pydantic_core import ErrorDetails

from jobs.checking import check
from jobs.csv_rows import Row
from jobs.fields import MAX_EMAIL
from jobs.orders.contracts import MAX_REFERENCE, MAX_SKU

HEADER = ("reference", "email", "placed_at", "sku", "quantity", "amount")
MAX_QUANTITY = 1_000_000
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

QUANTITY = re.compile(r"[0-9]{1,9}")
AMOUNT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,2}))?")
"""Up to 999,999,999.99, which with the most lines of one order is far below what bigint holds."""


class RowError(ValueError):
    """The row can't go in; the text is the reject's reason."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an order, and what its row says of the order."""

    reference: str
    email: str
    placed_at: datetime
    sku: str
    quantity: int
    amount_cents: int


def _bounded(what: str, longest: int, text: str) -> str:
    if not text:
        raise RowError(f"has no {what}")
    if len(text) > longest:
        raise RowError(f"is too long in its {what}: {len(text)} characters where {longest} are allowed")
    return text


def _moment(text: str) -> datetime:
    """A time in ISO 8601; one without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise RowError(f"has a placed_at that is no time: {text[:50]!r}") from None
    if not EARLIEST <= moment < LATEST:
        raise RowError(f"has a placed_at before {EARLIEST.year} or after {LATEST.year - 1}: {text[:50]!r}")
    return moment


def _quantity(text: str) -> int:
    if not QUANTITY.fullmatch(text):
        raise RowError(f"has a quantity that is no whole number of 1 or more: {text[:50]!r}")
    quantity = int(text)
    if not 1 <= quantity <= MAX_QUANTITY:
        raise RowError(f"has a quantity that isn't between 1 and {MAX_QUANTITY:,}: {text[:50]!r}")
    return quantity


def _cents(text: str) -> int:
    """Exactly, without a float on the way."""
    amount = AMOUNT.fullmatch(text)
    if amount is None:
        raise RowError(f"has an amount that is no number with at most two decimals: {text[:50]!r}")
    whole, decimals = amount.groups(default="")
    return int(whole + decimals.ljust(2, "0"))


LINES = TypeAdapter(
    list[
        tuple[
            Annotated[str, PlainValidator(partial(_bounded, "reference", MAX_REFERENCE))],
            Annotated[str, PlainValidator(partial(_bounded, "e-mail address", MAX_EMAIL))],
            Annotated[datetime, PlainValidator(_moment)],
            Annotated[str, PlainValidator(partial(_bounded, "sku", MAX_SKU))],
            Annotated[int, PlainValidator(_quantity)],
            Annotated[int, PlainValidator(_cents)],
        ]
    ]
)
"""As HEADER has them."""


def check_lines(rows: Sequence[Row]) -> list[Line | RowError]:
    """Of each row its line, or what is wrong with it."""
    return [RowError(found) if isinstance(found, str) else Line(*found) for found in check(rows, LINES, _reason)]


def _reason(error: ErrorDetails) -> str:
    return str(error.get("ctx", {})["error"])  # a RowError
