"""How a range of keys is split."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.runtime.bench import Taken
from worker.keys import bounds_between, evenly


class Base(DeclarativeBase):
    pass


KEYS = st.integers(-(2**62), 2**62)


@pytest.mark.parametrize(
    ("least", "greatest", "partitions", "bounds"),
    [(1, 9, 3, [3, 6]), (1, 10, 4, [2, 5, 7]), (5, 6, 4, [5]), (5, 5, 4, []), (1, 9, 1, []), (-4, 4, 3, [-2, 1])],
)
def test_the_parts_are_of_equal_width(least: int, greatest: int, partitions: int, bounds: list[int]) -> None:
    assert bounds_between(least, greatest, partitions) == bounds


def test_only_whole_numbers_are_split_evenly() -> None:
    with pytest.raises(ValueError, match=r"evenly got Taken.name, of the type String\(\); give a whole number"):
        evenly(Taken.name)  # type: ignore[arg-type]  # that is the point


def test_a_number_in_a_type_of_ones_own_is_one() -> None:
    class OrderId(TypeDecorator[int]):
        impl, cache_ok = BigInteger, True

    class Numbered(Base):
        __tablename__ = "numbered"
        id: Mapped[int] = mapped_column(OrderId, primary_key=True)

    evenly(Numbered.id)


@given(KEYS, st.integers(0, 10**6), st.integers(1, 1_000))
def test_each_key_is_in_one_part_and_no_part_is_much_larger(least: int, more: int, partitions: int) -> None:
    greatest = least + more
    bounds = bounds_between(least, greatest, partitions)
    assert len(bounds) < partitions or partitions == 1
    edges = [least - 1, *bounds, greatest]
    widths = [upper - lower for lower, upper in pairwise(edges)]
    assert min(widths) > 0
    assert max(widths) - min(widths) <= 1 + (more + 1) // partitions
