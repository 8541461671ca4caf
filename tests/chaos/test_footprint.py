"""How memory on the way is told."""

from tests.chaos.footprint import by_parts


def test_each_tenth_has_its_median_and_a_short_way_fewer_parts() -> None:
    assert by_parts([float(n) for n in range(100)]) == [4.5 + 10 * part for part in range(10)]
    assert by_parts([100, 900, 102]) == [100, 900, 102]
    assert by_parts([]) == []
