"""What the long-lived worker takes: at rest, and on its way through the faults."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

PARTS = 10


@dataclass(frozen=True, slots=True)
class Footprint:
    """What it takes while it has nothing to do."""

    resident_mb: float
    blocks: int
    """Of memory, held by Python's objects (`tests.chaos.app.live_blocks`)."""
    postgres: int
    valkey: int
    """Connections."""


def by_parts(samples: Sequence[float]) -> list[float]:
    """The median of each tenth of the samples: whether what it takes still grows, or has come to an end."""
    size = max(1, -(-len(samples) // PARTS))
    return [round(median(samples[at : at + size]), 1) for at in range(0, len(samples), size)]
