"""One run: it opens the shop, lets the producers and the faults loose on it, mends everything, and has it judged."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from tests.chaos import logs
from tests.chaos.app import SLOTS, Meet
from tests.chaos.crew import resident_mb
from tests.chaos.faults import ACTS
from tests.chaos.footprint import Footprint, by_parts
from tests.chaos.judge import Verdict, judge, lost_direct, shown
from tests.chaos.plan import KINDS, WITNESS, Fault, by_kind, plan, span_s
from tests.chaos.producers import Means, produce
from tests.chaos.stage import Secrets, Stage, staged
from worker.database import create_engine
from worker.outbox import enqueue
from worker.settings import SPARE_CONNECTIONS

LOOK_EVERY_S = 0.25
START_S = 60.0
DRAIN_S = 120.0
"""After the last fault was mended."""
TAKEOVER_S, REFILL_S = 20.0, 30.0
QUIET_S, MEASURED_FROM = 3.0, 2 * len(KINDS)
"""From so many faults on, a kill and a wipe come before the others, and are left alone for two leases and a little."""
AROUND_S = 60.0
"""What opening, draining and judging may take of the minutes that were given."""

MOST_POSTGRES = SLOTS + SPARE_CONNECTIONS + 2
"""The pool, the connection that listens and the one that ends zombies. The pool grows as it is needed."""
SPARE_VALKEY = 2
"""Its pool grows with what is asked at the same moment."""
MOST_GROWN = 1.05
"""Statements that only faults ask for, and connections that weren't needed before, are kept once: 1.03 was seen after
100 faults, and after 1,000."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    seed: int
    orders: int
    faults: int
    minutes: float
    lease_s: float
    processes: tuple[int, int, int] = (1, 2, 1)
    """Of each worker; one with more than one has a supervisor."""


@dataclass(slots=True)
class Progress:
    """What can be told while it runs."""

    applied: int = 0
    broken: int = 0
    current: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Report:
    """What came of it."""

    options: Options
    faults: Mapping[str, int]
    enqueued: Counter[str]
    verdicts: list[Verdict]
    told: logs.Told
    lost_direct: int
    slowest_takeover_s: float | None
    takeovers: int
    slowest_refill_s: float | None
    refills: int
    before: Footprint
    after: Footprint
    on_the_way_mb: list[float]
    """Resident memory of the long-lived worker, by tenths of the time in which things break."""
    effects: int
    seconds: float
    folder: str

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


async def play(options: Options, folder: Path, secrets: Secrets, tell: Callable[[Progress], None]) -> Report:
    """Everything that a run writes goes into `folder`."""
    quiet_s = 2 * options.lease_s + QUIET_S if options.faults >= MEASURED_FROM else 0.0
    within_s = max(5.0, options.minutes * 60 - AROUND_S - 2 * quiet_s)
    faults = plan(options.seed, options.faults, within_s, quiet_s=quiet_s)
    async with staged(folder, secrets, options.processes, lease_s=options.lease_s) as stage:
        engine = create_engine(stage.url_through(stage.producers), pool_size=8, application="ratchet chaos")
        means = Means(engine, stage.valkey.url, secrets)
        witness, others = stage.crew[WITNESS], stage.crew[WITNESS + 1 :]
        try:
            witness.version = "new"
            witness.start()
            await produce(means, -options.seed, max(20, options.orders // 50), 0, most_s=AROUND_S)
            await drained(stage)
            before = await _measured(stage, means)
            for number, member in enumerate(others):
                member.version = "old" if number else "new"
                member.start()
            await _all_there(stage, sum(options.processes))
            began = time.monotonic()
            resident = await _through_all(stage, means, options, faults, tell)
            await _mend(stage)
            await drained(stage)
            seconds = time.monotonic() - began
            for member in others:
                await member.stop()
            after = await _measured(stage, means)
        finally:
            await engine.dispose()
        starts = witness.starts
        await witness.stop()
        return await _judged(stage, options, faults, means, before, after, resident, seconds, starts)


async def _through_all(
    stage: Stage,
    means: Means,
    options: Options,
    faults: Sequence[Fault],
    tell: Callable[[Progress], None],
) -> Sequence[float]:
    """Returns the long-lived worker's memory (MiB), look by look."""
    progress = Progress()
    resident: list[float] = []
    began = asyncio.get_running_loop().time()

    async def broken(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, began + fault.at_s - asyncio.get_running_loop().time()))
        progress.current.append(str(fault))
        try:
            await ACTS[fault.kind](stage, fault)
        finally:
            progress.current.remove(str(fault))
            progress.broken += 1

    async def told() -> None:
        while True:
            progress.applied = await stage.value("select count(*) from chaos.effect") or progress.applied
            tell(progress)
            with suppress(OSError):  # it has ended, which the judge tells of
                resident.append(resident_mb(stage.crew[WITNESS].pid))
            await asyncio.sleep(LOOK_EVERY_S)

    telling = asyncio.create_task(told())
    try:
        async with asyncio.TaskGroup() as group:
            most_s = options.minutes * 60 - AROUND_S / 2
            group.create_task(produce(means, options.seed, options.orders, span_s(faults), most_s=most_s))
            for fault in faults:
                group.create_task(broken(fault))
        await asyncio.gather(*stage.watches)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    return resident


async def _all_there(stage: Stage, processes: int) -> None:
    """Wait until so many processes say that they live, or for START_S."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if await stage.living() >= processes:
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def _mend(stage: Stage) -> None:
    """Whatever a fault has left armed is taken back, and the new version is everywhere."""
    stage.producers.cut_before = stage.producers.cut_after = None
    for member in stage.crew:
        for line in (member.postgres, member.valkey):
            line.cut_before = line.cut_after = None
            line.lose_answer_to(b"")
        async with member.lock:
            member.look()
            if member.version != "new":
                member.version = "new"
                await member.stop()
                member.start()


async def drained(stage: Stage, within_s: float = DRAIN_S) -> bool:
    """Wait until nothing is left to do. False: it didn't come to that."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        left = await stage.value(
            "select (select count(*) from worker.outbox) + (select count(*) from worker.run where finished_at is null)"
        )
        if left == 0 and await stage.queued() == 0:
            return True
        await asyncio.sleep(LOOK_EVERY_S)
    return False


async def _measured(stage: Stage, means: Means) -> Footprint:
    """With all slots and all of their connections taken once, and then nothing to do."""
    async with AsyncSession(means.engine) as session, session.begin():
        for number in range(SLOTS):
            enqueue(session, Meet(number=number))
    await drained(stage)
    blocks = await stage.value("select blocks from chaos.memory order by seq desc limit 1")
    witness = stage.crew[WITNESS]
    return Footprint(round(resident_mb(witness.pid), 1), blocks, witness.postgres.lines, witness.valkey.lines)


async def _judged(
    stage: Stage,
    options: Options,
    faults: Sequence[Fault],
    means: Means,
    before: Footprint,
    after: Footprint,
    resident: Sequence[float],
    seconds: float,
    witness_starts: int,
) -> Report:
    told = logs.read(stage.folder)
    async with stage.asking() as connection:
        verdicts = await judge(connection)
        lost = await lost_direct(connection)
        effects: int = await connection.fetchval("select count(*) from chaos.effect")
    takeover, refill = max(stage.takeovers_s, default=None), max(stage.refills_s, default=None)
    verdicts += [
        _no("no worker ended by itself", [line for member in stage.crew for line in member.surprises] + told.deaths),
        _no("no worker met what nobody expected", told.faults),
        _no("no secret was written", logs.leaks(stage.folder, stage.secrets.all())),
        Verdict(
            f"a killed worker's jobs were done elsewhere within {TAKEOVER_S:g} s",
            takeover is None or takeover <= TAKEOVER_S,
            f"{len(stage.takeovers_s)} measured" + (f", {takeover:.1f} s at most" if takeover else ""),
        ),
        Verdict(
            f"an emptied Redis was refilled within {REFILL_S:g} s",
            refill is None or refill <= REFILL_S,
            f"{len(stage.refills_s)} measured" + (f", {refill:.1f} s at most" if refill else ""),
        ),
        Verdict(
            "the long-lived worker has no more in memory than before",
            after.blocks <= before.blocks * MOST_GROWN,
            f"{before.blocks:,} blocks and {after.blocks:,} (at most {before.blocks * MOST_GROWN:,.0f})",
        ),
        Verdict(
            "the long-lived worker was never started again, and has no more connections than before",
            witness_starts == 1 and after.postgres <= MOST_POSTGRES and after.valkey <= before.valkey + SPARE_VALKEY,
            f"PostgreSQL {before.postgres} and {after.postgres} (at most {MOST_POSTGRES}), "
            f"Valkey {before.valkey} and {after.valkey}",
        ),
    ]
    return Report(
        options, by_kind(faults), means.enqueued, verdicts, told, lost, takeover, len(stage.takeovers_s), refill,
        len(stage.refills_s), before, after, by_parts(resident), effects, round(seconds, 1), str(stage.folder),
    )  # fmt: skip


def _no(claim: str, broken: Sequence[str]) -> Verdict:
    return Verdict(claim, not broken, shown(broken) or "none")
