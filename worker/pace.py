"""How far a chunked job is, how fast it goes, and how many rows its next chunk takes. Pure.

As GitLab's batched background migrations do it (`Gitlab::Database::BackgroundMigration::BatchOptimizer`): efficiency is
the time a batch took over the time it should take, smoothed by an exponential moving average with alpha 0.4. Between
0.9 and 0.95 the size stays; else it is multiplied by 0.95 / efficiency, but never by more than 1.2.

What is smoothed here is the time of one row, and the efficiency is that of the size it led to: an average over sizes
that are gone would go on shrinking long after the size is right.
"""

from dataclasses import dataclass
from datetime import timedelta

from pydantic import JsonValue

ALPHA = 0.4
EFFICIENT, MOST_EFFICIENT = 0.9, 0.95
MAX_GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a chunk's size is held to."""

    target: timedelta | None
    """Time a transaction. None: the size stays."""
    smallest: int
    largest: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Kept in the run, so that a job resumes at the pace it had."""

    size: int
    """Rows of the next chunk."""
    row_seconds: float | None = None
    """What one row of the size takes, smoothed. None: no chunk has ended."""
    rate: float | None = None
    """Rows done in a second of work, smoothed."""

    def after(self, asked: int, done: int, took: timedelta, sizes: Sizes) -> "Pace":
        """The pace when a chunk that was asked for `asked` rows has done `done` of them in `took`."""
        seconds = max(took.total_seconds(), 1e-6)
        row_seconds = _smoothed(self.row_seconds, seconds / asked)
        return Pace(_next_size(asked, row_seconds, sizes), row_seconds, _smoothed(self.rate, done / seconds))

    def time_left_s(self, done: int, total: int | None) -> float | None:
        """Seconds of work until `total` rows are done. None: nobody knows."""
        return (total - done) / self.rate if self.rate and total is not None and total >= done else None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a chunked job is."""

    cursor: JsonValue
    counts: dict[str, JsonValue]
    chunks: int
    """How many have committed."""
    done: int
    total: int | None
    pace: Pace
    size: int
    """Rows that the next chunk is asked for."""
    partitions: int | None
    """Of a parent that was split: how many partitions it has."""
    bounds: tuple[JsonValue, JsonValue] | None
    """Of a partition: its lower and its upper one. None for any other job."""


def resumed_size(kept: int | None, first: int, sizes: Sizes) -> int:
    """Rows of the next chunk: as many as the run says, within bounds that may have been deployed since."""
    return first if kept is None or sizes.target is None else _within(kept, sizes)


def asked_size(size: int, failures: int, sizes: Sizes) -> int:
    """Rows of the next try: half as many after each failure, since it may have been too much for the timeout."""
    return max(size >> failures, min(size, sizes.smallest))


def _next_size(size: int, row_seconds: float, sizes: Sizes) -> int:
    if sizes.target is None:
        return size
    efficiency = row_seconds * size / sizes.target.total_seconds()
    if EFFICIENT <= efficiency <= MOST_EFFICIENT:
        return _within(size, sizes)
    factor = min(MOST_EFFICIENT / efficiency, MAX_GROWTH)
    grown = max(size + 1, int(size * factor)) if efficiency < EFFICIENT else int(size * factor)
    return _within(grown, sizes)


def _within(size: int, sizes: Sizes) -> int:
    return min(max(size, sizes.smallest), sizes.largest)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else ALPHA * now + (1 - ALPHA) * before
