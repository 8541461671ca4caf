"""arq's hooks under our Worker, and its end and its second start: what arq's own tests don't ask of them."""

import asyncio
import signal
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any

from arq.connections import ArqRedis

from tests.consumer.conftest import Make
from tests.consumer.test_arq_functions import double, result
from tests.support.waiting import wait_until
from worker.broker import arq_settings
from worker.consumer import Worker

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


async def test_a_stop_that_waits_for_jobs_tells_that_it_is_over(arq: ArqRedis, make: Make) -> None:
    began, go_on, stopped = asyncio.Event(), asyncio.Event(), list[signal.Signals]()

    async def work(_ctx: Context) -> None:
        began.set()
        await go_on.wait()

    work.__qualname__ = "work"
    await arq.enqueue_job("work")
    worker = make(work, burst=False, job_completion_wait=60)
    worker.on_stop = stopped.append
    worker.main_task = asyncio.create_task(worker.main())
    await began.wait()
    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    go_on.set()
    with suppress(asyncio.CancelledError):
        await worker.main_task
    assert (stopped, worker.jobs_complete) == ([signal.SIGTERM], 1)


async def test_a_worker_that_was_closed_can_be_started_again_and_leaves_no_connection(
    arq: ArqRedis, redis_url: str
) -> None:
    """As arq's own, which reloads so; in a web application it runs beside, and is closed while it runs."""
    before = len(await arq.client_list())
    worker = Worker([double], redis_settings=arq_settings(redis_url), poll_delay=0.02, handle_signals=False)
    for n in range(2):
        running = asyncio.create_task(worker.async_run())
        await arq.enqueue_job("double", n, _job_id=f"job-{n}")
        assert await result(arq, f"job-{n}") == 2 * n
        await worker.close()
        with suppress(asyncio.CancelledError):
            await running

    async def are_closed() -> bool:
        return len(await arq.client_list()) == before

    await wait_until(are_closed)


async def test_who_runs_main_as_a_task_of_his_own_ends_it_by_closing_the_worker(redis_url: str, arq: ArqRedis) -> None:
    """No `main_task` is known that could be cancelled: it sees that no more jobs are to be picked."""
    worker = Worker([double], redis_settings=arq_settings(redis_url), poll_delay=1, handle_signals=False)
    running = asyncio.create_task(worker.main())
    await arq.enqueue_job("double", 1, _job_id="mine")
    assert await result(arq, "mine") == 2
    await worker.close()
    ended, waits = await asyncio.wait({running}, timeout=5)
    for task in waits:
        task.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended
