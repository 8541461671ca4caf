"""Tally: which jobs started, when, and how often, in a file that the driver and the workers map into their memory.

A handler's whole duty is `tally.mark(n)`: two stores, 0.3 to 0.5 µs, no system call, the same for every contender. The
driver looks at the memory without asking Redis, PostgreSQL or the worker for anything, so watching costs the run
nothing. Times are CLOCK_MONOTONIC, which all processes of a machine share.

Standard library only: peers import it in their own environments.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import cast

STAMP = 8  # bytes of a double


class Tally:
    """Of the jobs 0 … jobs - 1. One file may be mapped by many processes.

    Two processes that start the same job within the same 0.1 µs are counted as one; nothing else is missed.
    """

    def __init__(self, path: Path | None, jobs: int) -> None:
        """`path`: a file that `create` made; None: memory of this process alone."""
        self.jobs = jobs
        if path is None:
            memory = mmap.mmap(-1, _size(jobs))
        else:
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), _size(jobs))
        view = memoryview(memory)
        # mypy and typeshed know no type for what `cast` makes of a view of bytes.
        self._stamps = cast("memoryview[float]", view[: STAMP * jobs].cast("d"))  # type: ignore[redundant-cast, unused-ignore]
        self._counts = view[STAMP * jobs :]

    @classmethod
    def create(cls, path: Path, jobs: int) -> "Tally":
        """Make the file anew, with nothing started."""
        path.write_bytes(bytes(_size(jobs)))
        return cls(path, jobs)

    def mark(self, n: int) -> None:
        """Job n starts now."""
        self._stamps[n] = monotonic()
        self._counts[n] += 1

    def mark_many(self, numbers: Sequence[int]) -> None:
        """These start together."""
        now = monotonic()
        for n in numbers:
            self._stamps[n] = now
            self._counts[n] += 1

    @property
    def started(self) -> int:
        """How many jobs have started at least once."""
        return self.jobs - bytes(self._counts).count(0)

    @property
    def doubled(self) -> int:
        """How many have started more than once."""
        counts = bytes(self._counts)
        return self.jobs - counts.count(0) - counts.count(1)

    @property
    def starts(self) -> list[float]:
        """When each job that started did, in the order of the jobs' numbers (s)."""
        return [at for at, count in zip(self._stamps, self._counts, strict=True) if count]


def _size(jobs: int) -> int:
    return (STAMP + 1) * jobs
