import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.csv_rows import Row
from jobs.orders.rows import HEADER, Line, RowError, check_lines

GOOD = {
    "reference": "R-1",
    "email": "ada@example.com",
    "placed_at": "2021-03-01T10:00:00Z",
    "sku": "TEA",
    "quantity": "2",
    "amount": "5.01",
}


def checked(**fields: str) -> Line | RowError:
    values = GOOD | fields
    [found] = check_lines([Row(2, 0, b"", tuple(values[name] for name in HEADER))])
    return found


def test_a_good_row_is_a_line() -> None:
    placed_at = datetime(2021, 3, 1, 10, tzinfo=UTC)
    assert checked() == Line("R-1", "ada@example.com", placed_at, "TEA", 2, 501)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reference": ""}, "has no reference"),
        ({"reference": "x" * 101}, "is too long in its reference: 101 characters where 100 are allowed"),
        ({"email": ""}, "has no e-mail address"),
        ({"email": "x" * 321}, "is too long in its e-mail address: 321 characters where 320 are allowed"),
        ({"sku": ""}, "has no sku"),
        ({"sku": "x" * 101}, "is too long in its sku: 101 characters where 100 are allowed"),
        *(
            ({"placed_at": time}, f"has a placed_at that is no time: {time!r}")
            for time in ("", "yesterday", "2021-02-30T00:00:00Z", "0001-01-01T00:00:00+10:00", "1614592800")
        ),
        *(
            ({"placed_at": time}, f"has a placed_at before 1900 or after 2199: {time!r}")
            for time in ("1899-12-31", "2200-01-01", "0001-01-01")
        ),
        *(
            ({"quantity": quantity}, f"has a quantity that is no whole number of 1 or more: {quantity!r}")
            for quantity in ("", "-1", "1.5", "1_0", "٣", "two", "1e3")
        ),
        *(
            ({"quantity": quantity}, f"has a quantity that isn't between 1 and 1,000,000: {quantity!r}")
            for quantity in ("0", "1000001")
        ),
        *(
            ({"amount": amount}, f"has an amount that is no number with at most two decimals: {amount!r}")
            for amount in ("", "free", "-1.00", "NaN", "Infinity", "1e2", "1.234", "$5", "1 000", "1,5", "1000000000")
        ),
    ],
)
def test_a_bad_row_says_why(fields: dict[str, str], reason: str) -> None:
    fault = checked(**fields)
    assert isinstance(fault, RowError)
    assert str(fault) == reason


def test_a_fault_of_the_file_is_kept() -> None:
    assert [str(fault) for fault in check_lines([Row(2, 0, b"?", (), "is not UTF-8")])] == ["is not UTF-8"]


@pytest.mark.parametrize("time", ["2021-03-01T10:00:00", "2021-03-01 10:00:00Z", "2021-03-01T12:00:00+02:00"])
def test_a_time_without_zone_is_utc(time: str) -> None:
    line = checked(placed_at=time)
    assert isinstance(line, Line)
    assert line.placed_at == datetime(2021, 3, 1, 10, tzinfo=UTC)


@given(st.decimals(min_value=0, max_value="999999999.99", places=2))
def test_amounts_are_exact_to_the_cent(amount: Decimal) -> None:
    line = checked(amount=f"{amount:f}")
    assert isinstance(line, Line)
    assert line.amount_cents == amount * 100


@given(st.text(max_size=12))
def test_an_amount_is_read_exactly_or_refused(text: str) -> None:
    line = checked(amount=text)
    assert isinstance(line, Line) == bool(re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,2})?", text))
