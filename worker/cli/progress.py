"""How far a chunked job is, for people."""

from datetime import timedelta

BAR_WIDTH = 20


def told(done: int, total: int | None, rate: float | None, time_left_s: float | None) -> str:
    """`10 of 40 rows (25 %), 5 rows/s, 0:00:06 left`; what nobody knows is left out."""
    rows = f"{done:,} rows" if total is None else f"{done:,} of {total:,} rows"
    share = f" ({min(100, 100 * done // total)} %)" if total else ""
    return ", ".join((rows + share, *pace(rate, time_left_s)))


def pace(rate: float | None, time_left_s: float | None) -> list[str]:
    """The parts that tell how fast it goes, and how long it takes yet."""
    parts = [] if rate is None else [f"{rate:,.0f} rows/s"]
    return parts if time_left_s is None else [*parts, f"{timedelta(seconds=round(time_left_s))} left"]


def bar(done: int, total: int) -> str:
    """A line of blocks."""
    filled = min(BAR_WIDTH, BAR_WIDTH * done // total) if total else BAR_WIDTH
    return "█" * filled + "░" * (BAR_WIDTH - filled)
