"""What is broken, when and for how long: all of it from the seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WORKERS = 3
WITNESS = 0
"""The worker that no fault ends, stops or replaces: its memory and its connections tell what outages leave behind."""

HEAVY_AT_MOST = 150
"""Of one run. The faults beyond are cheap ones, for a soak of many faults in a short time."""
HEAVY_EVERY_S, CHEAP_EVERY_S = 1.8, 0.2


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to break something."""

    name: str
    lasts_s: tuple[float, float]
    """The shortest and the longest time until it is mended; drawn."""
    choices: tuple[str, ...] = ("",)
    """Its variants, of which one is drawn."""
    cheap: bool = False
    """Nothing is down for long."""
    spares_witness: bool = False
    """It is done to a worker other than the witness."""


KINDS: tuple[Kind, ...] = (
    Kind("kill worker", (0.1, 1.0), ("one", "all", "supervisor"), spares_witness=True),
    Kind("stop worker", (4.5, 7.0), spares_witness=True),
    Kind("crash postgres", (0.0, 2.0)),
    Kind("wipe valkey", (0.0, 2.0)),
    Kind("freeze valkey", (0.5, 2.5)),
    Kind("terminate backends", (0.0, 0.0), ("some", "all"), cheap=True),
    Kind("cut lines", (0.0, 0.0), ("postgres", "valkey"), cheap=True),
    Kind("lose commit", (0.0, 0.5), ("sent", "answer"), cheap=True),
    Kind("lose answer", (0.0, 0.5), ("claim", "settle", "push"), cheap=True),
    Kind("delay lines", (0.5, 3.0), ("postgres", "valkey")),
    Kind("swallow lines", (1.0, 6.0), ("postgres", "valkey", "both")),
    Kind("refuse connections", (0.2, 2.0), ("postgres", "valkey")),
    Kind("shift clock", (0.0, 0.0), ("-86400", "-3600", "-5", "5", "86400"), spares_witness=True),
    Kind("fill disk", (0.3, 1.5), ("handler", "commit", "run", "outbox")),
    Kind("deploy", (0.0, 0.0), ("old", "new", "new"), spares_witness=True),
)
MEASURED = (Kind("kill worker", (0.5, 0.5), ("all",), spares_witness=True), Kind("wipe valkey", (0.5, 0.5)))
"""These come first and alone, so that what follows on them can be measured."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of the plan."""

    number: int
    kind: str
    choice: str
    at_s: float
    """Since the first order."""
    lasts_s: float
    worker: int
    dice: str
    """Seeds what can only be chosen on the spot, such as one of the backends that are there then."""

    def __str__(self) -> str:
        where = f" {self.choice}" if self.choice else ""
        return f"{self.kind}{where} ({self.worker + 1})"


def plan(seed: int, faults: int, within_s: float, *, quiet_s: float = 0) -> tuple[Fault, ...]:
    """`faults` faults by their time. Each kind comes once before any comes twice; the rest is drawn.

    They are spread over a time that suits their number, at most `within_s`. With `quiet_s` those of MEASURED come
    before them, each with so much time for itself.
    """
    dice = random.Random(f"faults {seed}")
    first = [_fault(dice, at, kind, 1 + quiet_s * at) for at, kind in enumerate(MEASURED if quiet_s else ())]
    dealt = dice.sample(KINDS, len(KINDS))
    heavy, cheap = KINDS, [kind for kind in KINDS if kind.cheap]
    chosen = [
        dealt[number] if number < len(dealt) else dice.choice(heavy if number < HEAVY_AT_MOST else cheap)
        for number in range(faults - len(first))
    ]
    span_s = min(within_s, sum(CHEAP_EVERY_S if kind.cheap else HEAVY_EVERY_S for kind in chosen))
    begin_s = 1 + quiet_s * len(first)
    times = sorted(begin_s + dice.uniform(0, span_s) for _ in chosen)
    dice.shuffle(chosen)
    dated = enumerate(zip(chosen, times, strict=True), len(first))
    return (*first, *(_fault(dice, number, kind, at_s) for number, (kind, at_s) in dated))


def _fault(dice: random.Random, number: int, kind: Kind, at_s: float) -> Fault:
    workers = [worker for worker in range(WORKERS) if worker != WITNESS or not kind.spares_witness]
    return Fault(
        number, kind.name, dice.choice(kind.choices), round(at_s, 2), round(dice.uniform(*kind.lasts_s), 2),
        dice.choice(workers), f"{dice.random()}",
    )  # fmt: skip


def span_s(faults: Sequence[Fault]) -> float:
    """From the first order to the last fault's mending."""
    return max((fault.at_s + fault.lasts_s for fault in faults), default=0.0)


def by_kind(faults: Sequence[Fault]) -> Mapping[str, int]:
    """How many of each, in the order of KINDS."""
    return {kind.name: sum(fault.kind == kind.name for fault in faults) for kind in KINDS}
