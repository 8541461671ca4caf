"""How each kind of fault is done, and undone. What is broken is locked, so that no two faults break the same thing."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from tests.chaos.crew import Member
from tests.chaos.plan import Fault
from tests.chaos.recovery import refilled, taken_over, watch
from tests.chaos.stage import Stage
from tests.consumer.redis_proxy import sha_of
from tests.support.proxy import COMMIT_SENT, COMMITTED, Proxy
from worker.claim_script import CLAIM
from worker.push import PUSH
from worker.settle_script import SETTLE

LOOK_EVERY_S = 0.05
LOOKS = 40

Act = Callable[[Stage, Fault], Awaitable[None]]


async def kill_worker(stage: Stage, fault: Fault) -> None:
    member = stage.crew[fault.worker]
    async with member.lock:
        member.look()
        pids = set(member.working())
        if fault.choice == "one" and member.processes > 1:
            pids = set(random.Random(fault.dice).sample(sorted(pids), min(1, len(pids))))
        whole = fault.choice == "all" or member.processes == 1
        if fault.choice != "supervisor" or whole:
            held = await _stopped_at_work(stage, pids)
            for pid in pids:
                _signal(pid, signal.SIGKILL)
            if held:
                watch(stage, taken_over(stage, held))
        if whole or fault.choice == "supervisor":
            member.kill()
        await asyncio.sleep(fault.lasts_s)
        if member.process is None:
            member.start()


async def stop_worker(stage: Stage, fault: Fault) -> None:
    """It wakes when its lease is gone."""
    member = stage.crew[fault.worker]
    async with member.lock:
        member.look()
        if not (pids := member.working()):
            return
        pid = random.Random(fault.dice).choice(pids)
        await _stopped_at_work(stage, {pid})
        await asyncio.sleep(fault.lasts_s)
        _signal(pid, signal.SIGCONT)


async def _stopped_at_work(stage: Stage, pids: set[int]) -> dict[str, bytes]:
    """Stop these processes while they hold jobs, and return those with their tokens; none if they had none for long."""
    for _ in range(LOOKS):
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        # What a stopped process holds stays, so it can be read.
        if held := await stage.held_by(pids):
            return held
        for pid in pids:
            _signal(pid, signal.SIGCONT)
        await asyncio.sleep(LOOK_EVERY_S)
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    return {}


async def crash_postgres(stage: Stage, fault: Fault) -> None:
    async with stage.lock("postgres"), stage.outage():
        await asyncio.to_thread(stage.postgres.crash)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(stage.postgres.start)


async def wipe_valkey(stage: Stage, fault: Fault) -> None:
    async with stage.lock("valkey"):
        async with stage.outage():
            epoch = await stage.value("select epoch from worker.relay_state")
            await asyncio.to_thread(stage.valkey.kill)
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(stage.valkey.start)
        last = await stage.value("select coalesce(max(seq), 0) from worker.outbox")
        if epoch is not None and last:
            watch(stage, refilled(stage, epoch, last))


async def freeze_valkey(stage: Stage, fault: Fault) -> None:
    async with stage.lock("valkey"), stage.outage():
        _signal(stage.valkey.pid, signal.SIGSTOP)
        await asyncio.sleep(fault.lasts_s)
        _signal(stage.valkey.pid, signal.SIGCONT)


async def terminate_backends(stage: Stage, fault: Fault) -> None:
    pids = await stage.value(
        "select coalesce(array_agg(pid order by pid), '{}') from pg_stat_activity where usename = 'chaos'"
    )
    if not pids:
        return
    chosen = pids if fault.choice == "all" else random.Random(fault.dice).sample(pids, -(-len(pids) // 4))
    await stage.value("select count(pg_terminate_backend(pid)) from unnest($1::int[]) as pid", chosen)


async def cut_lines(stage: Stage, fault: Fault) -> None:
    _line(stage, fault, fault.choice).hang_up()


async def lose_commit(stage: Stage, fault: Fault) -> None:
    """The next commit's connection breaks, before the server has it or before the client hears of it."""
    for line in (stage.crew[fault.worker].postgres, stage.producers):
        if fault.choice == "sent":
            line.cut_before = COMMIT_SENT
        else:
            line.cut_after = COMMITTED


async def lose_answer(stage: Stage, fault: Fault) -> None:
    """Redis does what it is asked, and the connection breaks."""
    script = {"claim": CLAIM, "settle": SETTLE, "push": PUSH}[fault.choice]
    stage.crew[fault.worker].valkey.lose_answer_to(sha_of(script))


async def delay_lines(stage: Stage, fault: Fault) -> None:
    line = _line(stage, fault, fault.choice)
    line.delay_s = random.Random(fault.dice).uniform(0.01, 0.3)
    await asyncio.sleep(fault.lasts_s)
    line.delay_s = 0.0


async def swallow_lines(stage: Stage, fault: Fault) -> None:
    """A black hole in mid-statement; then all comes through at last, or the line is cut."""
    choices = ("postgres", "valkey") if fault.choice == "both" else (fault.choice,)
    lines = [_line(stage, fault, choice) for choice in choices]
    async with stage.lock(f"lines of {fault.worker}"):
        for line in lines:
            line.swallow()
        await asyncio.sleep(fault.lasts_s)
        for line in lines:
            if random.Random(fault.dice).random() < 0.5:
                line.hang_up()
            line.release()


async def refuse_connections(stage: Stage, fault: Fault) -> None:
    """The server is away, as seen from one worker."""
    async with stage.lock(f"lines of {fault.worker}"):
        line = _line(stage, fault, fault.choice)
        await line.stop()
        await asyncio.sleep(fault.lasts_s)
        await line.start()


async def shift_clock(stage: Stage, fault: Fault) -> None:
    await _replace(stage.crew[fault.worker], clock_shift_s=float(fault.choice))


async def deploy(stage: Stage, fault: Fault) -> None:
    """The other version, or the same again; all three may differ meanwhile."""
    stage.crew[fault.worker].version = fault.choice
    await _replace(stage.crew[fault.worker], clock_shift_s=0)


async def _replace(member: Member, clock_shift_s: float) -> None:
    async with member.lock:
        member.look()
        await member.stop()
        member.start(clock_shift_s)


async def fill_disk(stage: Stage, fault: Fault) -> None:
    async with stage.lock("disk"):
        await stage.value("insert into chaos.trouble values ($1) on conflict do nothing returning 1", fault.choice)
        await asyncio.sleep(fault.lasts_s)
        while await stage.value("with gone as (delete from chaos.trouble) select 1") is None:  # noqa: ASYNC110 - away
            await asyncio.sleep(LOOK_EVERY_S)


def _line(stage: Stage, fault: Fault, server: str) -> Proxy:
    member = stage.crew[fault.worker]
    return member.postgres if server == "postgres" else member.valkey


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


ACTS: Mapping[str, Act] = {
    "kill worker": kill_worker,
    "stop worker": stop_worker,
    "crash postgres": crash_postgres,
    "wipe valkey": wipe_valkey,
    "freeze valkey": freeze_valkey,
    "terminate backends": terminate_backends,
    "cut lines": cut_lines,
    "lose commit": lose_commit,
    "lose answer": lose_answer,
    "delay lines": delay_lines,
    "swallow lines": swallow_lines,
    "refuse connections": refuse_connections,
    "shift clock": shift_clock,
    "fill disk": fill_disk,
    "deploy": deploy,
}
