"""Queues in strict order, or drawn by weight."""

import random
from collections import Counter

import pytest

from worker.queue_order import QueueOrder, parse_order


def test_without_weights_the_order_is_strict() -> None:
    order = parse_order(["critical", " default", "bulk"])
    assert tuple(order) == ("critical", "default", "bulk")
    assert {order.draw() for _ in range(20)} == {("critical", "default", "bulk")}


def test_any_weight_makes_a_lottery_and_a_missing_one_is_one() -> None:
    order = parse_order(["critical=6", "default=3", "bulk"])
    assert tuple(order) == ("critical", "default", "bulk")
    assert order.weights == (6, 3, 1)


def test_a_queue_comes_first_as_often_as_its_share_and_none_is_ever_left_out() -> None:
    order, chance = QueueOrder(("critical", "default", "bulk"), (6, 3, 1)), random.Random(1)
    drawn = [order.draw(chance) for _ in range(10_000)]
    assert all(sorted(names) == ["bulk", "critical", "default"] for names in drawn)
    first = Counter(names[0] for names in drawn)
    assert [round(first[name] / 1_000) for name in order] == [6, 3, 1]
    # Without replacement: where critical came first, default has 3 of the 4 that are left.
    second = Counter(names[1] for names in drawn if names[0] == "critical")
    assert round(20 * second["default"] / second.total()) == 15


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "give names of queues"),
        ("a,,b", "give names of queues"),
        ("a b=1", "give names of queues"),
        ("a=2,a", "the queue a is named twice"),
        ("a=0", "the queue a has a weight that is no whole number"),
        ("a=", "the queue a has a weight that is no whole number"),
        ("a=1.5", "the queue a has a weight that is no whole number"),
        ("a=9999999999999", "the queue a has a weight that is no whole number"),
    ],
)
def test_what_is_no_order_is_refused(given: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_order(given.split(","))
