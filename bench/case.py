"""What a case is given, and what it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.blocks import Measure, contest
from bench.contenders import Contender, ContenderError
from bench.drive import drain
from bench.results import CaseResult, Run
from bench.servers import Servers

NOOP_SLOTS = 100
"""Of no-ops, as arq tuned has them."""
ORDER_SLOTS = 40
"""Of jobs that hold a connection to PostgreSQL."""


@dataclass(frozen=True)
class Bench:
    """The servers, and how much to measure."""

    servers: Servers
    rounds: int
    jobs: int
    """No-ops that ours gets; every other count follows from it."""
    say: Callable[[str], None]

    def installed(self, *contenders: Contender) -> list[Contender]:
        """Those that `make bench` has installed."""
        for contender in contenders:
            if not contender.is_installed:
                self.say(f"  {contender.name} isn't installed; make bench does that")
        return [contender for contender in contenders if contender.is_installed]

    def contest(
        self, anchor: str, measures: Mapping[str, Measure], rounds: int | None = None
    ) -> list[list[tuple[str, Run]]]:
        """Interleave the measures in blocks. A contender that breaks spoils its run, not the bench."""
        guarded = {name: _guarded(measure) for name, measure in measures.items()}
        return contest(anchor, guarded, rounds or self.rounds, self._say_run)

    def draining(self, contender: Contender, job: str, jobs: int, slots: int) -> Measure:
        """Measure how fast a contender drains its part of so many jobs."""
        return lambda: drain(self.servers, contender, job, contender.jobs(jobs), slots=slots)

    def _say_run(self, name: str, run: Run) -> None:
        value = "failed" if run.value is None else f"{run.value:,.1f}"
        self.say(f"  {name}: {value}{f' (spoilt: {run.spoilt})' if run.spoilt else ''}")


@dataclass(frozen=True)
class Case:
    """A name for --cases, the question it answers, and what answers it."""

    name: str
    question: str
    run: Callable[[Bench, CaseResult], None]
    """Fills in the result."""


def names(contenders: Sequence[Contender]) -> list[str]:
    return [contender.name for contender in contenders]


def _guarded(measure: Measure) -> Measure:
    def guarded() -> Run:
        try:
            return measure()
        except (ContenderError, OSError, TimeoutError) as error:
            return Run(None, str(error))

    return guarded
