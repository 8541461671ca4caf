"""A process that a handler forks is no worker: what is sent to it ends it, and the worker doesn't notice."""

import asyncio
import multiprocessing
import signal

import pytest

from tests.processes.app import Fork, Step
from tests.processes.conftest import Effects, Enqueue, Run
from worker.event_loop import loop_factory
from worker.event_loop import run as run_loop


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)], ids=["terminate", "interrupt"]
)
async def test_a_signal_to_a_fork_is_none_to_its_worker(
    run: Run, enqueued: Enqueue, effects: Effects, signum: signal.Signals, code: int
) -> None:
    worker = await run(WORKER_PROCESSES="1")
    [forking] = await enqueued(Fork(signum=signum))
    await worker.wait_for("forked", code=code)
    await worker.wait_for("completed", job_id=forking)
    [after] = await enqueued(Step())
    await worker.wait_for("completed", job_id=after)
    assert not [line for line in worker.lines if line.get("event") == "stopping"]
    assert await effects() == [worker.pid]
    assert await worker.stop() == 0


def test_a_signal_that_comes_before_the_fork_has_done_anything_is_its_own_too() -> None:
    told: list[signal.Signals] = []
    codes: list[int | None] = []

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, signal.SIGTERM)
        while len(codes) < 20 and not told and None not in codes:
            fork = multiprocessing.get_context("fork").Process(target=signal.pause)
            fork.start()
            fork.terminate()
            fork.join(5)
            codes.append(fork.exitcode)
            fork.kill()
            await asyncio.sleep(0)

    run_loop(main(), loop_factory())
    assert (told, codes) == ([], [-signal.SIGTERM] * 20)
