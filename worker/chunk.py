"""The two values of a chunked job: where to begin, and how far it came.

The runtime owns the loop, as in Shopify's job-iteration: a chunk function has no loop, no commit and no checkpoint.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, Protocol, TypeVar

from pydantic import JsonValue

from worker.errors import Permanent

C = TypeVar("C")


class Closable(Protocol):
    """What lets go of what it holds: an open file, a thread's work."""

    def close(self) -> None:
        """Doesn't wait. What it raises is nobody's failure: what was kept is forgotten."""
        ...


K = TypeVar("K", bound=Closable)


class Memory:
    """What a chunked handler keeps for its next chunk, such as an open file and what it has read ahead.

    It lasts as long as the attempt and no chunk fails, so it is never the truth: whoever finds nothing in it, or
    something that doesn't fit the cursor, begins from the cursor.
    """

    _kept: Closable | None = None

    def keep(self, thing: Closable) -> None:
        """Instead of what was kept before."""
        if thing is not self._kept:
            self.forget()
        self._kept = thing

    def recall(self, kind: type[K]) -> K | None:
        """What is kept, if it is of this kind."""
        return self._kept if isinstance(self._kept, kind) else None

    def forget(self) -> None:
        """Close what is kept."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            with suppress(Exception):
                kept.close()


@dataclass(frozen=True, slots=True)
class Step(Generic[C]):
    """What one chunk did. Commits together with the chunk's work."""

    cursor: C | None
    """Where the next chunk begins. None: nothing is left."""
    done: int = 0
    """Rows worked on in this chunk."""
    total: int | None = None
    """Rows in all, for progress only. What one chunk told stays, and an estimate will do."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Added up over all chunks; their sums are the run's result."""
    result: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """Merged into the result beside the counts, such as the path of a file. No `int` where the job is in partitions."""
    asked: int | None = None
    """The size that the rows were read with, where that isn't the chunk's: they were read ahead."""
    apart: timedelta = timedelta(0)
    """What the chunk took for other than its rows, such as to open a file. The pace leaves it out."""

    def added_to(self, totals: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The run's result so far, with this chunk: counts add up, other results replace.

        Raises Permanent for a count that isn't an int, as PostgreSQL's sum of a bigint column.
        """
        added = dict(totals)
        for name, count in self.counts.items():
            if not isinstance(count, int):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a driver gives is Any
                raise Permanent(f"A chunk counts {name}={count!r}, and counts are whole numbers; give int(…) of it.")
            before = added.get(name, 0)
            added[name] = count + (before if isinstance(before, int) else 0)
        return {**added, **self.result}


@dataclass(frozen=True, slots=True)
class Chunk(Generic[C]):
    """Where a chunk begins. Read under the run's lock, never from memory."""

    cursor: C | None
    """The cursor that the last committed chunk gave. None: the first chunk."""
    size: int
    """How many rows this chunk should take. It adapts to the time that chunks take; see ChunkedHandler."""
    lower: C | None = None
    upper: C | None = None
    """The partition's share of the key range, where the job is partitioned: lower < key <= upper."""
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    """What the chunk before has kept, in the same attempt."""

    def step(
        self,
        cursor: C | None,
        *,
        done: int = 0,
        total: int | None = None,
        counts: Mapping[str, int] | None = None,
        result: Mapping[str, JsonValue] | None = None,
        asked: int | None = None,
        apart: timedelta = timedelta(0),
    ) -> Step[C]:
        """The step that ends this chunk."""
        return Step(cursor, done, total, counts or {}, result or {}, asked, apart)
