"""Blocks: runs one after another in an order that lets them be compared.

This kind of machine drifts by a factor of two within minutes, so ours runs again between every two of the others, and
nothing is compared across blocks.
"""

from collections.abc import Callable, Mapping, Sequence

from bench.results import Run

Measure = Callable[[], Run]
EVERY = 2


def order(anchor: str, others: Sequence[str], block: int) -> list[str]:
    """anchor, other, other, anchor, other, other, anchor. Each block begins with another of the others."""
    turn = block % len(others) if others else 0
    turned = [*others[turn:], *others[:turn]]
    names = [anchor]
    for first in range(0, len(turned), EVERY):
        names += [*turned[first : first + EVERY], anchor]
    return names


def contest(
    anchor: str, measures: Mapping[str, Measure], rounds: int, say: Callable[[str, Run], None]
) -> list[list[tuple[str, Run]]]:
    """Run every measure in `rounds` blocks. `say` is told of each run."""
    others = [name for name in measures if name != anchor]
    blocks: list[list[tuple[str, Run]]] = []
    for number in range(rounds):
        block: list[tuple[str, Run]] = []
        for name in order(anchor, others, number):
            run = measures[name]()
            say(name, run)
            block.append((name, run))
        blocks.append(block)
    return blocks
