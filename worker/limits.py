"""What may not start now: names at their limit, and what is paused. Held across all workers, by the claim script.

Permits are leases (`ratchet:permits:{name}`, ids by the end of their lease), so a killed worker's come back. Of a rate
the last starts are kept (`ratchet:rate:{name}`): a token bucket such as GCRA would let almost twice as many start in
some windows. Both are held under the name of the handler's job, whichever alias a message carries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

MOST_STARTS = 10_000
"""Each start is remembered for the time of its rate, some 100 bytes of Redis."""


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any `per`, all of them at once if need be."""

    count: int
    per: timedelta

    def __post_init__(self) -> None:
        """Raises ValueError for what lets nothing start, and for more than Redis should remember."""
        count: Any = self.count  # as whoever uses no type checker may give it
        per: Any = self.per
        if not isinstance(count, int) or not isinstance(per, timedelta):
            raise ValueError(f"A rate of {count!r} in {per!r} is none; give a whole number and a timedelta.")  # noqa: TRY004 - as below
        if self.count < 1 or self.per <= timedelta(0):
            raise ValueError(f"A rate of {self.count} in {self.per} lets nothing start; give both above zero.")
        if self.count > MOST_STARTS:
            raise ValueError(
                f"A rate of {self.count:,} in {self.per} is more than {MOST_STARTS:,}; give fewer in less time."
            )


@dataclass(frozen=True, slots=True)
class Gate:
    """What a message of some name has to pass."""

    key: str
    """The name that the limit is held under."""
    max_concurrent: int | None = None
    rate: Rate | None = None

    def arguments(self, name: str) -> tuple[Any, ...]:
        """What the claim script takes of it, for messages of this name; an empty text means no limit."""
        rate = (self.rate.count, self.rate.per.total_seconds() * 1000) if self.rate else ("", "")
        return (name, self.key, "" if self.max_concurrent is None else self.max_concurrent, *rate)


@dataclass(frozen=True, slots=True)
class Paused:
    """Queues that nothing is claimed from, and job names of which nothing is started."""

    queues: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Limits:
    """The limits of an app's handlers, and what is paused at the moment."""

    def __init__(self, gates: Mapping[str, Gate] = MappingProxyType({})) -> None:
        """`gates`: by the names that messages may carry, of all jobs that are known."""
        self._gates = gates
        self.known = f" {' '.join(gates)} "
        """All these names, each between blanks, for the claim script."""
        self._paused = Paused()
        self._arguments = self._made()

    def pause(self, paused: Paused) -> None:
        """These are paused from now on, and no others."""
        if paused != self._paused:
            self._paused = paused
            self._arguments = self._made()

    def open(self, queues: Sequence[str]) -> Sequence[str]:
        """Those of `queues` that aren't paused."""
        paused = self._paused.queues
        return [queue for queue in queues if queue not in paused] if paused else queues

    def arguments(self) -> Sequence[Any]:
        """What the claim script takes of each name that is limited or paused."""
        return self._arguments

    def _made(self) -> list[Any]:
        gates = {**{name: Gate(name) for name in self._paused.names}, **self._gates}
        held = {gates[name].key for name in self._paused.names}
        made: list[Any] = []
        for name, gate in gates.items():
            if gate.key in held:
                made += Gate(gate.key, 0, gate.rate).arguments(name)
            elif gate.max_concurrent is not None or gate.rate is not None:
                made += gate.arguments(name)
        return made
