"""arq's hooks under our Worker: what arq's own tests don't ask of them."""

import asyncio
import signal
from contextvars import ContextVar, Token
from typing import Any

from arq.connections import ArqRedis

from tests.consumer.conftest import Make
from tests.consumer.test_arq_functions import double, result

Context = dict[Any, Any]

current: ContextVar[str] = ContextVar("current", default="nobody")


async def test_what_the_start_hook_sets_is_there_until_after_the_end_and_can_be_reset(
    arq: ArqRedis, make: Make
) -> None:
    """As instrumentations do: a span is entered at the start, and left when the job has ended."""
    seen: list[str] = []

    async def start(ctx: Context) -> None:
        ctx["token"] = current.set(ctx["job_id"])

    async def after(ctx: Context) -> None:
        token: Token[str] = ctx["token"]
        seen.append(current.get())
        current.reset(token)
        seen.append(current.get())

    await arq.enqueue_job("double", 1, _job_id="a")
    await arq.enqueue_job("double", 1, _job_id="b")
    await make(double, on_job_start=start, after_job_end=after).main()
    assert sorted(seen) == ["a", "b", "nobody", "nobody"]


async def test_hooks_of_ended_jobs_take_slots_so_that_they_do_not_pile_up(arq: ArqRedis, make: Make) -> None:
    running = most = 0

    async def after(_ctx: Context) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(50):  # longer than a job
            await arq.ping()
        running -= 1

    for n in range(50):
        await arq.enqueue_job("double", n)
    worker = make(double, after_job_end=after, max_jobs=2)
    await worker.main()
    assert worker.jobs_complete == 50
    assert most <= 4  # one that has ended has no slot until Redis knows


async def test_a_hook_that_does_not_end_does_not_keep_the_worker_from_stopping(arq: ArqRedis, make: Make) -> None:
    in_hook = asyncio.Event()

    async def after(_ctx: Context) -> None:
        in_hook.set()
        await asyncio.Event().wait()

    await arq.enqueue_job("double", 1, _job_id="mine")
    worker = make(double, after_job_end=after, burst=False)
    worker.main_task = asyncio.create_task(worker.main())
    await in_hook.wait()
    worker.handle_sig(signal.SIGTERM)
    ended, _ = await asyncio.wait({worker.main_task}, timeout=5)
    assert ended == {worker.main_task}
    assert await result(arq, "mine") == 2
