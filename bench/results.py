"""What a bench finds: runs, figures over them, ratios within blocks, and whether a target was reached."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Run:
    """One measurement. A spoilt one is shown and never counted."""

    value: float | None
    spoilt: str = ""
    tail: float | None = None
    """Of latencies: the 99th percentile, where `value` is the 50th."""

    @property
    def counts(self) -> bool:
        return self.value is not None and not self.spoilt


Block = Sequence[tuple[str, Run]]
"""Runs in the order in which they were made, each with its figure's name. Only runs of one block are compared."""


@dataclass(frozen=True)
class Spread:
    """Of several values: median, least and greatest; None where nothing counted."""

    median: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if not values:
            return cls(None, None, None, ())
        return cls(median(values), min(values), max(values), tuple(values))


@dataclass(frozen=True)
class Figure:
    """What one contender reached in one case."""

    name: str
    measure: str
    unit: str
    spread: Spread
    spoilt: tuple[str, ...] = ()
    """Why runs didn't count, one line a run."""


@dataclass(frozen=True)
class Target:
    """What a ratio or a figure must reach; one of the two is given."""

    at_least: float | None = None
    at_most: float | None = None

    def is_reached(self, value: float | None) -> bool | None:
        """None: nothing was measured."""
        if value is None:
            return None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f"≥ {self.at_least:,}" if self.at_least is not None else f"≤ {self.at_most:,}"


@dataclass(frozen=True)
class Comparison:
    """A ratio, or a plain figure, and its target."""

    what: str
    spread: Spread
    target: Target | None = None

    @property
    def reached(self) -> bool | None:
        return self.target.is_reached(self.spread.median) if self.target else None


@dataclass
class CaseResult:
    """One case: what it asks, what came of it."""

    name: str
    question: str
    figures: list[Figure] = field(default_factory=list[Figure])
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    notes: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        comparisons = [
            {**asdict(made), "target": str(made.target) if made.target else None, "reached": made.reached}
            for made in self.comparisons
        ]
        return {**asdict(self), "comparisons": comparisons}


def figures(blocks: Sequence[Block], measure: str, unit: str) -> list[Figure]:
    """A figure for each name, in the order in which they first appear."""
    runs: dict[str, list[Run]] = {}
    for block in blocks:
        for name, run in block:
            runs.setdefault(name, []).append(run)
    return [
        Figure(
            name,
            measure,
            unit,
            Spread.of([run.value for run in made if run.counts and run.value is not None]),
            tuple(run.spoilt for run in made if run.spoilt),
        )
        for name, made in runs.items()
    ]


def tails(blocks: Sequence[Block]) -> list[list[tuple[str, Run]]]:
    """The same blocks with the tail of each run as its value."""
    return [[(name, Run(run.tail, run.spoilt)) for name, run in block] for block in blocks]


def best(found: Sequence[Figure], names: Sequence[str], *, least: bool = False) -> str | None:
    """Which of `names` has the greatest median (or the least); None where none was measured."""
    medians = {figure.name: figure.spread.median for figure in found if figure.name in names}
    measured = {name: value for name, value in medians.items() if value is not None}
    return (min if least else max)(measured, key=lambda name: measured[name]) if measured else None


def ratio(blocks: Sequence[Block], top: str, bottom: str) -> Spread:
    """top / bottom: one ratio a block, and the spread of those."""
    ratios = [block_ratio(block, top, bottom) for block in blocks]
    return Spread.of([found for found in ratios if found is not None])


def block_ratio(block: Block, top: str, bottom: str) -> float | None:
    """The ratio within one block: each run of the rarer name against its neighbours of the other, averaged.

    The neighbours are the nearest run before and the nearest after, so a drift of the machine that is steady over the
    three cancels out. None where either has no run that counts.
    """
    tops, bottoms = _places(block, top), _places(block, bottom)
    if not tops or not bottoms:
        return None
    if len(tops) <= len(bottoms):
        return fmean(value / _around(bottoms, place) for place, value in tops.items())
    return fmean(_around(tops, place) / value for place, value in bottoms.items())


def _places(block: Block, name: str) -> dict[int, float]:
    return {
        place: run.value
        for place, (whose, run) in enumerate(block)
        if whose == name and run.counts and run.value is not None and run.value > 0
    }


def _around(values: dict[int, float], place: int) -> float:
    before = [values[other] for other in sorted(values) if other < place][-1:]
    after = [values[other] for other in sorted(values) if other > place][:1]
    return fmean(before + after)
