"""A worker that is done ends, and is replaced where it has a supervisor, though a thread of a handler's goes on."""

import os
import signal

import pytest

from tests.processes.app import Meddle, Thread, Upset
from tests.processes.conftest import Enqueue, Run, children, wait_until_gone


async def test_a_process_that_recycles_is_replaced_though_a_thread_goes_on(run: Run, enqueued: Enqueue) -> None:
    worker = await run(WORKER_MAX_JOBS="1")  # ± 10 %: two at most
    first = await children(worker)
    await enqueued(*[Thread()] * 3)
    await worker.wait_for("threads_left")
    recycled = (await worker.wait_for("process_recycled"))["pid"]
    *_, successor = await children(worker, count=3)
    assert recycled in first
    assert not [line for line in worker.lines if line.get("event") == "process_died"]
    await worker.stop()
    await wait_until_gone(*first, successor)


@pytest.mark.parametrize("of_loop", [False, True], ids=["own", "of the loop"])
async def test_sigterm_ends_a_worker_though_a_thread_goes_on(run: Run, enqueued: Enqueue, *, of_loop: bool) -> None:
    worker = await run(WORKER_PROCESSES="1")
    [job_id] = await enqueued(Thread(of_loop=of_loop))
    await worker.wait_for("completed", job_id=job_id)
    worker.signal(signal.SIGTERM)
    told = await worker.wait_for("threads_left")
    assert set(told["threads"]) & ({"uvloop_0", "asyncio_0"} if of_loop else {"endless"})
    assert await worker.wait() == 0


async def test_a_worker_that_a_handler_has_cancelled_says_so_and_doesnt_pass_for_one_that_was_told(
    run: Run, enqueued: Enqueue
) -> None:
    worker = await run(WORKER_PROCESSES="1")
    [job_id] = await enqueued(Meddle())
    assert await worker.wait() == os.EX_SOFTWARE
    await worker.wait_for("cancelled_by_a_job", job_ids=[job_id])


async def test_a_worker_whose_lifespan_fails_while_it_works_doesnt_pass_for_one_that_was_told(
    run: Run, enqueued: Enqueue
) -> None:
    """A task group in it cancels the task that has opened it."""
    worker = await run(WORKER_PROCESSES="1", WORKER_APP="tests.processes.app:refreshing")
    await enqueued(Upset())
    assert await worker.wait() == os.EX_SOFTWARE
    await worker.wait_for("fault", part="lifespan")
    await worker.wait_for("worker_cancelled")
