"""A Worker without an engine runs plain arq functions. Here: what arq's own tests (tests/arq_suite) don't ask of it."""

import asyncio
import os
import pickle
import signal
import sys
import time
from asyncio.subprocess import STDOUT
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.worker import Function, Retry, func

from tests.consumer.conftest import Make
from tests.consumer.mixed import alone, ran, run
from tests.support.waiting import wait_until
from worker.broker import arq_settings
from worker.wire import JobFailed, deserialize


@asynccontextmanager
async def stock_worker(redis_url: str, log: Path) -> AsyncGenerator[int]:
    """The `arq` command with the functions of `mixed`; its process's id."""
    with log.open("wb") as written:  # a pipe would hold it up once it is full
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("arq"), "tests.consumer.mixed.WorkerSettings", stdout=written, stderr=STDOUT,
            env={"PATH": os.environ["PATH"], "REDIS_URL": redis_url}, start_new_session=True,
        )  # fmt: skip
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.wait()


async def double(_ctx: dict[Any, Any], n: int) -> int:
    return 2 * n


async def fail(_ctx: dict[Any, Any]) -> None:
    raise ValueError("no such thing")


async def result(redis: ArqRedis, job_id: str) -> Any:
    return await ArqJob(job_id, redis, _deserializer=redis.job_deserializer).result(timeout=10, poll_delay=0.02)


async def test_messages_and_results_are_json_unless_serializers_are_given(arq: ArqRedis, make: Make) -> None:
    await arq.enqueue_job("double", 21, _job_id="good")
    await arq.enqueue_job("fail", _job_id="bad")
    worker = make(double, fail)
    await worker.main()
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 1)
    assert b'"r":42' in await arq.get("arq:result:good")
    assert await result(arq, "good") == 42
    with pytest.raises(JobFailed, match=r"^ValueError: no such thing$"):
        await result(arq, "bad")


class Trap:
    """Its pickle fails the test when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was loaded",))


@pytest.mark.parametrize("given", [{}, {"job_serializer": None, "job_deserializer": None}])
async def test_a_pickle_is_kept_as_it_is_and_never_loaded(
    arq: ArqRedis, make: Make, caplog: pytest.LogCaptureFixture, given: dict[str, None]
) -> None:
    message = pickle.dumps({"t": None, "f": "double", "a": (Trap(),), "k": {}, "et": 1})
    await arq.set("arq:job:pickled", message)
    await arq.zadd("arq:queue", {"pickled": 1})
    await make(double, **given).main()
    assert await arq.get("arq:job:pickled") == message
    assert await arq.zscore("arq:queue", "pickled") > 1
    assert "its message can't be read" in caplog.text


@pytest.mark.parametrize(
    "message",
    [b'{"f":[],"a":[],"k":{},"t":null,"et":1}', b'{"f":"double","a":[],"k":{},"t":"x","et":1e300}', b"[]", b""],
)
async def test_a_message_of_any_kind_is_kept_and_harms_no_other(arq: ArqRedis, make: Make, message: bytes) -> None:
    await arq.set("arq:job:odd", message)
    await arq.zadd("arq:queue", {"odd": 1})
    await arq.enqueue_job("double", 1, _job_id="good")
    await make(double).main()
    assert await arq.get("arq:job:odd") == message
    assert await result(arq, "good") == 2


async def test_a_job_whose_function_is_unknown_waits_for_a_worker_that_knows_it(arq: ArqRedis, make: Make) -> None:
    await arq.enqueue_job("double", 21, _job_id="mine")
    stranger = make(fail)
    await stranger.main()
    assert (stranger.jobs_failed, await arq.exists("arq:result:mine", "arq:in-progress:mine")) == (0, 0)
    await arq.zadd("arq:queue", {"mine": 1})
    await make(double).main()
    assert await result(arq, "mine") == 42


@pytest.mark.parametrize("by", ["signal", "the end of the loop"])
async def test_a_try_that_ends_since_the_worker_stops_is_not_counted(arq: ArqRedis, make: Make, by: str) -> None:
    began, tries = asyncio.Event(), list[int]()

    async def wait(ctx: dict[Any, Any]) -> None:
        tries.append(ctx["job_try"])
        began.set()
        if len(tries) == 1:
            await asyncio.Event().wait()

    wait.__qualname__ = "wait"
    await arq.enqueue_job("wait", _job_id="mine")
    first = make(wait, max_tries=1, burst=False)
    first.main_task = asyncio.create_task(first.main())
    await began.wait()
    assert (await arq.get("arq:in-progress:mine")).decode().startswith(first._name)
    if by == "signal":
        first.handle_sig(signal.SIGTERM)
    else:  # as asyncio.run does
        for task in (*first.tasks.values(), first.main_task):
            task.cancel()
    await asyncio.gather(first.main_task, return_exceptions=True)
    await first._all_told()
    assert first.jobs_retried == 1
    second = make(wait, max_tries=1)
    await second.main()
    assert (second.jobs_complete, tries) == (1, [1, 1])


async def test_a_worker_that_is_cancelled_while_it_sends_a_command_to_redis_stops(
    redis_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py looks under `asyncio.timeout(0)` whether a connection is good, which may swallow a cancellation."""
    worker = make(double, redis_pool=None, redis_settings=arq_settings(redis_url), burst=False)

    async def signalled_meanwhile() -> None:
        monkeypatch.undo()
        await worker.pool.ping()
        worker.handle_sig(signal.SIGTERM)
        await worker.pool.ping()

    monkeypatch.setattr(worker, "heart_beat", signalled_meanwhile)
    worker.main_task = asyncio.create_task(worker.main())
    ended, _ = await asyncio.wait({worker.main_task}, timeout=10)
    assert ended == {worker.main_task}
    await worker.close()


async def test_a_try_that_its_function_gives_up_is_counted(arq: ArqRedis, make: Make) -> None:
    async def again(ctx: dict[Any, Any]) -> int:
        if ctx["job_try"] < 3:
            raise Retry
        return int(ctx["job_try"])

    again.__qualname__ = "again"
    await arq.enqueue_job("again", _job_id="mine")
    await make(again).main()
    assert await result(arq, "mine") == 3


@pytest.mark.parametrize(("timeout", "tries"), [(60, b"1"), (0.1, b"2")], ids=["in time", "beyond its time"])
async def test_a_stop_spares_the_try_of_a_job_unless_its_time_was_over(
    arq: ArqRedis, make: Make, timeout: float, tries: bytes
) -> None:
    """One that holds up its process is what such a stop is for, and the next process must not go the same way."""

    async def block(ctx: dict[Any, Any]) -> None:
        assert ctx["job_try"] == 2
        time.sleep(0.2)  # noqa: ASYNC251 - which is what this is about
        worker.handle_sig(signal.SIGTERM)  # as it comes once the event loop has its turn
        await asyncio.sleep(30)

    await arq.enqueue_job("block", _job_id="mine")
    await arq.set("arq:retry:mine", 1)
    worker = make(func(block, name="block", timeout=timeout), burst=False)
    worker.main_task = asyncio.create_task(worker.main())
    await asyncio.wait({worker.main_task}, timeout=10)
    assert await arq.get("arq:retry:mine") == tries
    await arq.flushall()


async def test_a_job_is_not_tried_again_after_it_has_expired(arq: ArqRedis, make: Make) -> None:
    """As arq's `_expires` has it."""
    tries: list[int] = []

    async def again(ctx: dict[Any, Any]) -> None:
        tries.append(ctx["job_try"])
        await wait_until(partial(is_gone, arq, "until-then"))
        raise Retry

    again.__qualname__ = "again"
    await arq.enqueue_job("again", _job_id="mine", _expires=2)
    await arq.set("until-then", 1, px=2_001)
    worker = make(again)
    await worker.main()
    assert (tries, worker.jobs_failed) == ([1], 1)
    with pytest.raises(JobFailed, match="job expired"):
        await result(arq, "mine")
    assert await arq.exists("arq:in-progress:mine", "arq:retry:mine", "arq:queue") == 0


async def test_a_job_keeps_its_expiry_unless_nobody_here_knows_it(arq: ArqRedis, make: Make) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_ctx: dict[Any, Any]) -> None:
        began.set()
        await go_on.wait()

    wait.__qualname__ = "wait"
    await arq.enqueue_job("wait", _job_id="known", _expires=60)
    await arq.enqueue_job("nobodys", _job_id="unknown", _expires=60)
    main = asyncio.create_task(make(wait).main())
    await began.wait()
    assert 0 < await arq.ttl("arq:job:known") <= 60
    go_on.set()
    await main
    assert await arq.ttl("arq:job:unknown") == -1


async def is_gone(arq: ArqRedis, key: str) -> bool:
    return not await arq.exists(key)


async def test_a_hook_that_fails_when_the_job_has_ended_changes_nothing(
    arq: ArqRedis, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(_ctx: dict[Any, Any]) -> None:
        raise RuntimeError("the hook")

    await arq.enqueue_job("double", 1, _job_id="mine")
    await make(double, on_job_end=hook, after_job_end=hook).main()
    assert await result(arq, "mine") == 2
    assert caplog.text.count("a hook at its end failed") == 2


async def test_a_job_that_comes_to_an_idle_worker_from_our_client_wakes_it(arq: ArqRedis, make: Make) -> None:
    worker = make(double, burst=False, poll_delay=3600)
    main = asyncio.create_task(worker.main())

    async def is_idle() -> bool:
        return bool(await arq.exists("ratchet:idle:arq:queue"))

    await wait_until(is_idle)
    await arq.set("arq:job:mine", b'{"t":null,"f":"double","a":[21],"k":{},"et":1}')
    await arq.zadd("arq:queue", {"mine": 1})
    await arq.publish("ratchet:wake", "arq:queue")
    assert await result(arq, "mine") == 42
    main.cancel()
    await asyncio.gather(main, return_exceptions=True)


@pytest.mark.leaves_keys("what ran, and by whom, is read after the workers have ended")
async def test_beside_a_stock_worker_on_one_queue_each_job_runs_once(
    arq: ArqRedis, make: Make, redis_url: str, tmp_path: Path
) -> None:
    """The first jobs wait for each other, so that both workers have some."""
    for n in range(2_000):
        await arq.enqueue_job("run", _job_id=f"job-{n}")
    log = tmp_path / "arq.log"
    async with stock_worker(redis_url, log) as pid:
        ours = make(run)
        await ours.main()
    by_whom = await ran(arq)
    assert sorted(by_whom) == sorted(f"job-{n}" for n in range(2_000)), log.read_text()
    assert set(by_whom.values()) == {(os.getpid(),), (pid,)}
    assert ours.jobs_complete == sum(pids == (os.getpid(),) for pids in by_whom.values())


@pytest.mark.leaves_keys("what ran, and by whom, is read after the workers have ended")
async def test_a_job_that_the_stock_worker_alone_knows_comes_to_it_though_ours_is_quicker(
    arq: ArqRedis, make: Make, redis_url: str, tmp_path: Path
) -> None:
    await alone(arq)
    ours = make(double, burst=False)
    main = asyncio.create_task(ours.main())
    log = tmp_path / "arq.log"
    async with stock_worker(redis_url, log) as pid:
        for n in range(3):
            await arq.enqueue_job("run", _job_id=f"job-{n}")

        async def have_run() -> bool:
            return len(await ran(arq)) == 3

        await wait_until(have_run, timeout=15)
    main.cancel()
    await asyncio.gather(main, return_exceptions=True)
    assert set((await ran(arq)).values()) == {(pid,)}, log.read_text()


async def test_a_function_that_cancels_its_own_task_uses_up_its_tries(arq: ArqRedis, make: Make) -> None:
    tries: list[int] = []

    async def cancelling(ctx: dict[Any, Any]) -> None:
        tries.append(ctx["job_try"])
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    await arq.enqueue_job("cancelling", _job_id="a")
    worker = make(
        Function("cancelling", cancelling, timeout_s=None, keep_result_s=None, keep_result_forever=None, max_tries=3)
    )
    await worker.main()
    assert tries == [1, 2, 3]
    assert worker.jobs_failed == 1


async def test_a_burst_waits_for_a_known_job_though_somebody_else_did_an_unknown_one(arq: ArqRedis, make: Make) -> None:
    done: list[str] = []

    async def first(_ctx: dict[Any, Any]) -> None:
        await arq.zrem("arq:queue", "unknown")
        await arq.delete("arq:job:unknown")
        await arq.enqueue_job("second", _defer_by=0.2)
        done.append("first")

    async def second(_ctx: dict[Any, Any]) -> None:
        done.append("second")

    first.__qualname__, second.__qualname__ = "first", "second"
    await arq.enqueue_job("nobodys", _job_id="unknown")
    await arq.enqueue_job("first", _defer_by=0.2)
    await make(first, second).main()
    assert done == ["first", "second"]


@pytest.mark.parametrize("by", ["signal", "abort"])
async def test_a_job_that_has_ended_keeps_its_result_though_its_hook_is_cancelled(
    arq: ArqRedis, make: Make, by: str
) -> None:
    ran, in_hook = list[int](), asyncio.Event()

    async def work(ctx: dict[Any, Any]) -> str:
        ran.append(ctx["job_try"])
        return "done"

    async def hook(_ctx: dict[Any, Any]) -> None:
        in_hook.set()
        if len(ran) == 1:
            await asyncio.sleep(1)

    work.__qualname__ = "work"
    await arq.enqueue_job("work", _job_id="mine")
    first = make(work, on_job_end=hook, burst=False, allow_abort_jobs=True)
    first.main_task = asyncio.create_task(first.main())
    await in_hook.wait()
    aborted = False
    if by == "signal":
        first.handle_sig(signal.SIGTERM)
    else:
        aborted = await ArqJob("mine", arq, _deserializer=deserialize).abort(timeout=10, poll_delay=0.05)
        first.main_task.cancel()
    await asyncio.gather(first.main_task, return_exceptions=True)
    await first._all_told()
    await make(work, on_job_end=hook).main()
    assert (aborted, ran) == (False, [1])
    assert await result(arq, "mine") == "done"


async def test_a_hook_may_take_longer_than_a_lease(arq: ArqRedis, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.standalone.LEASE", timedelta(seconds=1))
    monkeypatch.setattr("worker.consumer.LEASE", timedelta(seconds=1))

    async def start(_ctx: dict[Any, Any]) -> None:
        await asyncio.sleep(2)

    await arq.enqueue_job("double", 1, _job_id="mine")
    worker = make(double, on_job_start=start, handle_signals=True)
    async with asyncio.timeout(10):
        await worker.main()
    assert await result(arq, "mine") == 2
