"""A process that a handler forks is no worker: what is sent to it ends it, and the worker doesn't notice."""

import signal

import pytest

from tests.processes.app import Fork, Step
from tests.processes.conftest import Effects, Enqueue, Run


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
