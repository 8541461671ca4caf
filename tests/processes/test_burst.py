"""A burst of several processes ends when each has found nothing more to do. Nobody is started anew."""

import os
import signal

from tests.processes.app import Step, Wait
from tests.processes.conftest import LOCK, Effects, Enqueue, Locked, Run, children


async def test_a_burst_ends_when_everything_is_done(run: Run, enqueued: Enqueue, effects: Effects) -> None:
    await enqueued(*[Step()] * 20)
    worker = await run("--burst", WORKER_MAX_JOBS="1")
    assert await worker.wait() == 0
    assert len(await effects()) == 20
    assert set(await effects()) <= set(await children(worker))


async def test_a_process_that_dies_in_a_burst_gives_it_its_exit_code(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    await enqueued(Wait(lock=LOCK))
    async with locked():
        worker = await run("--burst", WORKER_LEASE="3600")
        os.kill((await worker.wait_for("began"))["pid"], signal.SIGKILL)
        assert await worker.wait() == 128 + signal.SIGKILL
    assert await effects() == []
    assert len([line for line in worker.lines if line.get("event") == "process_started"]) == 2
