"""Strikes a worker at every site, one after another, and calls the judge after each strike.

Ways to the sites are found as it goes: first those that a scenario takes by itself; then those that a worker takes only
because of a strike, which get a second one on top, and so on.
"""

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from tests.faults.points import MODES, NO_SERVER, Mode, Origin, Strike
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.stage import Stage, where

TRIES = 3
"""Of one way: where it leads is a matter of timing, too."""
WAYS = 4
"""To a site that are tried, before it counts as not struck."""
PATIENT = 12
"""Times that every way to a site is tried, before it counts as spared."""
HANGS_AFTER_S = 120.0
"""Much more than the stage's own patience."""
ENOUGH = 5
"""Words of the judge."""
DEPTH = 3
"""Strikes on one way, at most."""


@dataclass(frozen=True)
class Way:
    """How a worker comes to a site: what it is asked, and what strikes it. `fresh`: it has only just started."""

    scenario: Scenario
    fresh: bool
    strikes: tuple[Strike, ...] = ()

    def __str__(self) -> str:
        return f"{self.scenario.name}{' (fresh)' * self.fresh}: {', then '.join(map(str, self.strikes))}"


@dataclass
class Findings:
    reached: set[str] = field(default_factory=set[str])
    struck: Counter[Mode] = field(default_factory=Counter[Mode])
    spared: set[str] = field(default_factory=set[str])
    """Sites that it came to, and that nothing has struck."""
    left: dict[tuple[str, Mode], int] = field(default_factory=dict[tuple[str, Mode], int])
    """What is still to be struck, with the number of ways to it that may be tried yet."""
    wrong: list[str] = field(default_factory=list[str])
    """What the judge said."""


class Explorer:
    def __init__(
        self,
        sites: Collection[str],
        stage_of: Callable[[Scenario], Stage],
        *,
        everything: bool,
    ) -> None:
        """`sites` are struck. Unless `everything`, each in one way only, as long as that leads to all of them."""
        self.found = Findings()
        self._place = {site: place for place, site in enumerate(sorted(sites))}
        self._stage_of = stage_of
        self._everything = everything
        self._ways: dict[tuple[int, str], deque[Way]] = {}
        self._rest: deque[Way] = deque()
        """Ways that are taken only to find what hasn't been come to."""
        self._planned: set[tuple[str, Mode]] = set()
        self._to: defaultdict[str, list[Way]] = defaultdict(list)
        """Every way to a site, with a strike at its end, that has been found."""

    async def explore(self) -> Findings:
        by_chance = [pair for scenario in SCENARIOS for pair in await self._come_by(scenario)]
        for way, reached in by_chance:
            self._learn(way, {site: origin for site, origin in reached.items() if site not in self.found.reached})
        for depth in range(1, DEPTH + 1):
            for scenario in SCENARIOS:
                await self._take_all(scenario, self._ways.pop((depth, scenario.name), deque()))
            while (missing := self._place.keys() - self.found.reached) and self._rest:
                await self._look_for(missing)
        for site in sorted(self.found.spared):
            await self._strike_somehow(site)
        return self.found

    async def _strike_somehow(self, site: str) -> None:
        """Where the way that was chosen for it leads elsewhere in the end: whichever way there is."""
        for way in PATIENT * self._to[site]:
            if site in self.found.spared:
                await self._take_all(way.scenario, deque([way]))

    async def _look_for(self, missing: AbstractSet[str]) -> None:
        """Strike once more: where something is missing if that can be, since handlers of errors stand beside them."""
        modules = {site.partition(":")[0] for site in missing}
        near = (way for way in self._rest if way.strikes[-1].site.partition(":")[0] in modules)
        way = next(near, self._rest[0])
        self._rest.remove(way)
        await self._take_all(way.scenario, deque([way]))

    async def _come_by(self, scenario: Scenario) -> list[tuple[Way, dict[str, Origin]]]:
        """Run it without a strike, with a worker that has just started, and with one that has run a while.

        Returns what it came to by chance, which is to be learned where no other way leads to it.
        """
        stage = self._stage_of(scenario)
        fresh, warm = Way(scenario, fresh=True), Way(scenario, fresh=False)
        ways = (fresh, warm) if scenario is SCENARIOS[0] else (warm,)  # all start in one way
        # The first run makes caches and scripts; what only one of two comes to is a matter of chance.
        runs = [(way, [await self._run(stage, way) for _ in range(3)]) for way in ways]
        await stage.end()
        for way, (_, once, twice) in reversed(runs):
            self._learn(way, {site: origin for site, origin in once.items() if site in twice})
        return [(way, {**first, **once, **twice}) for way, (first, once, twice) in runs]

    async def _take_all(self, scenario: Scenario, ways: deque[Way]) -> None:
        stage = self._stage_of(scenario)
        while ways:
            await self._take(stage, ways.popleft())
        await stage.end()

    async def _take(self, stage: Stage, way: Way) -> None:
        last = way.strikes[-1]
        for _ in range(TRIES):
            reached = await self._run(stage, way)
            self._learn(way, reached)
            if not stage.victim.strikes:
                self.found.struck[last.mode] += 1
                self.found.spared.discard(last.site)
                self.found.left.pop((last.site, last.mode), None)
                return
        self._planned.discard((last.site, last.mode))
        if (last.site, last.mode) in self.found.left:
            self.found.left[last.site, last.mode] -= 1

    async def _run(self, stage: Stage, way: Way) -> dict[str, Origin]:
        """Returns the sites that it came to, and whose operation each is."""
        if way.fresh or stage.has_ended():
            await stage.end()
            stage.start(way.strikes if way.fresh else ())
        if not way.fresh:
            stage.strike(way.strikes)
        try:
            async with asyncio.timeout(HANGS_AFTER_S):
                wrong = await stage.settle(await way.scenario.ask(stage))
        except TimeoutError as error:
            raise AssertionError(f"{way}: hangs\n{where(asyncio.all_tasks())}") from error
        if wrong is not None:
            self.found.wrong.append(f"{way}: {wrong}")
            await stage.end()
            await stage.redis.flushall()
            if len(self.found.wrong) >= ENOUGH:
                raise AssertionError("\n".join(self.found.wrong))
        return stage.victim.reached

    def _learn(self, way: Way, reached: dict[str, Origin]) -> None:
        """Plan a strike at each site of `reached` that still waits for one."""
        for site, origin in reached.items():
            if site not in self._place:
                continue
            if site not in self.found.reached:
                possible = _modes(site, origin)
                chosen = possible if self._everything else _some(self._place[site], possible)
                self.found.reached.add(site)
                self.found.spared.add(site)
                self.found.left |= dict.fromkeys(((site, mode) for mode in chosen), WAYS)
                self._rest += [_longer(way, site, mode) for mode in possible if mode not in chosen]
            if site in self.found.spared:
                self._to[site] += [_longer(way, site, mode) for mode in _modes(site, origin)]
            for mode in MODES:
                if self.found.left.get((site, mode), 0) > 0 and (site, mode) not in self._planned:
                    self._planned.add((site, mode))
                    longer = _longer(way, site, mode)
                    self._ways.setdefault((len(longer.strikes), way.scenario.name), deque()).append(longer)


def _longer(way: Way, site: str, mode: Mode) -> Way:
    return replace(way, strikes=(*way.strikes, Strike(site, mode)))


def _modes(site: str, origin: Origin) -> tuple[Mode, ...]:
    """An error is born where a server is asked, or the handler is called. Elsewhere there is no reply to be lost."""
    if origin in {"asyncio", "worker"}:
        return NO_SERVER
    return tuple(mode for mode in MODES if not (mode == "refuse" and site.endswith(".exit")))


def _some(place: int, modes: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """One way: each site's neighbours have others."""
    return (modes[place % len(modes)],)
