"""In which order queues are looked at: as they are named, or drawn anew each time by their weights. Pure."""

import random
from collections.abc import Iterable, Sequence
from typing import Self

from worker.job import QUEUE

MAX_WEIGHT = 1_000_000


class QueueOrder(tuple[str, ...]):  # noqa: SLOT001 - a tuple takes no slots
    """The names of queues, which may have weights; without any they are looked at strictly in this order."""

    weights: tuple[int, ...] | None

    def __new__(cls, names: Iterable[str], weights: Sequence[int] | None = None) -> Self:
        """`weights`: one for each name, above zero."""
        made = super().__new__(cls, names)
        made.weights = None if weights is None else tuple(weights)
        return made

    def draw(self, chance: random.Random | None = None) -> tuple[str, ...]:
        """All names in an order. A weighted one comes first as often as its share of the weights says, as in Sidekiq.

        Drawn without replacement: the shortest of exponential waits, whose rates are the weights, comes first.
        """
        if self.weights is None:
            return self
        wait = chance.expovariate if chance else random.expovariate
        waits = {name: wait(weight) for name, weight in zip(self, self.weights, strict=True)}
        return tuple(sorted(waits, key=waits.__getitem__))


def parse_order(parts: Iterable[str]) -> QueueOrder:
    """Read `critical=6`, `default=3`, `bulk`. Where any queue has a weight, those without have 1.

    Raises ValueError for what names no queue, names one twice, or has no whole weight above zero.
    """
    weights: dict[str, int | None] = {}
    for part in parts:
        name, mark, weight = part.strip().partition("=")
        if not QUEUE.fullmatch(name):
            raise ValueError("give names of queues, separated by commas")
        if name in weights:
            raise ValueError(f"the queue {name} is named twice; name it once")
        if mark and not (weight.isdecimal() and 1 <= int(weight[:9]) <= MAX_WEIGHT):
            raise ValueError(f"the queue {name} has a weight that is no whole number from 1 to {MAX_WEIGHT:,}")
        weights[name] = int(weight) if mark else None
    if not weights:
        raise ValueError("give names of queues, separated by commas")
    return QueueOrder(weights, [weight or 1 for weight in weights.values()] if any(weights.values()) else None)
