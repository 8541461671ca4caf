"""`worker run --processes N`: N processes share the work, a dead one is replaced, and none is ever left behind.

`WorkerProcess.wait` returns at the end of the output, to which every child writes: then there is none left.
"""

import asyncio
import os
import signal
from contextlib import suppress

from redis import Redis as SyncRedis

from tests.processes.app import Leave, Thread, Wait
from tests.processes.conftest import LOCK, Effects, Enqueue, Locked, Run, children, wait_until_gone
from tests.support.waiting import wait_until
from worker.dev import EmbeddedPostgres


async def test_each_process_works_and_a_signal_ends_them_all(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    job_ids = await enqueued(Wait(lock=LOCK), Wait(lock=LOCK))
    async with locked():
        worker = await run()
        pids = await children(worker)
        for pid in pids:
            began = await worker.wait_for("began", pid=pid)
            assert began["loop"].partition(".")[0] == "uvloop"
    for job_id in job_ids:
        await worker.wait_for("completed", job_id=job_id)
    assert await worker.stop() == 0
    assert sorted(await effects()) == sorted(pids)
    await wait_until_gone(*pids)
    assert len(set(pids)) == len(pids) == 2
    assert worker.pid not in pids


async def test_a_killed_process_is_replaced_and_its_job_is_done_once(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    [job_id] = await enqueued(Wait(lock=LOCK))
    async with locked():
        worker = await run()
        victim = (await worker.wait_for("began"))["pid"]
        os.kill(victim, signal.SIGKILL)
        await worker.wait_for("process_died", pid=victim, signal="SIGKILL")
        *_, successor = await children(worker, count=3)
        await worker.wait_for("began", count=2)
    await worker.wait_for("completed", job_id=job_id)
    assert len(await effects()) == 1
    assert victim not in await effects()
    assert await worker.stop() == 0
    await wait_until_gone(victim, successor)


async def test_a_job_that_ends_its_process_with_a_code_of_refusals_ends_no_other(run: Run, enqueued: Enqueue) -> None:
    worker = await run()
    await children(worker)
    await enqueued(Leave(code=2))
    await worker.wait_for("process_died", code=2)
    *_, successor = await children(worker, count=3)
    assert await worker.stop() == 0
    await wait_until_gone(successor)


async def test_when_the_supervisor_is_killed_its_processes_end_in_order(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    job_ids = await enqueued(Wait(lock=LOCK), Wait(lock=LOCK))
    async with locked():
        worker = await run(WORKER_SHUTDOWN_GRACE="60")
        pids = await children(worker)
        await worker.wait_for("began", count=2)
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait_for("supervisor_gone", count=2)
        await worker.wait_for("stopping", running=1, count=2)
    assert await worker.wait() == -signal.SIGKILL
    for job_id in job_ids:
        await worker.wait_for("completed", job_id=job_id)
    assert sorted(await effects()) == sorted(pids)
    await wait_until_gone(*pids)


async def test_a_sigterm_that_every_process_gets_leaves_running_jobs_their_grace(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    """As systemd and Heroku send it: the supervisor passes it on to who has it already."""
    [job_id] = await enqueued(Wait(lock=LOCK))
    async with locked():
        worker = await run(WORKER_SHUTDOWN_GRACE="60")
        for pid in [*await children(worker), worker.pid]:
            await worker.wait_for("began")
            os.kill(pid, signal.SIGTERM)
        await worker.wait_for("supervisor_stopping", signal="SIGTERM")
        worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await worker.wait_for("completed", job_id=job_id)
    assert len(await effects()) == 1


async def test_ctrl_c_twice_cuts_the_grace_short(run: Run, enqueued: Enqueue, effects: Effects, locked: Locked) -> None:
    [job_id] = await enqueued(Wait(lock=LOCK))
    async with locked():
        worker = await run(WORKER_SHUTDOWN_GRACE="3600", WORKER_LOG_LEVEL="debug")
        await worker.wait_for("began")
        worker.signal(signal.SIGINT)
        await worker.wait_for("stopping", running=1)
        worker.signal(signal.SIGINT)
        assert await worker.wait() == 0, worker.output
    await worker.wait_for("released", job_id=job_id)
    assert await effects() == []


async def test_ctrl_c_ends_a_worker_that_a_handlers_thread_holds_up(run: Run, enqueued: Enqueue) -> None:
    """It ends in order all the same: by then there is nothing left to do."""
    [job_id] = await enqueued(Thread())
    worker = await run(WORKER_PROCESSES="1")
    await worker.wait_for("completed", job_id=job_id)
    ended = asyncio.create_task(worker.wait())

    async def has_ended() -> bool:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGINT)
        return ended.done()

    await wait_until(has_ended)
    assert await ended == 0
    assert "Traceback" not in worker.output


async def test_wrong_settings_are_said_once(run: Run) -> None:
    wrong = await run(WORKER_CONCURRENCY="0")
    nowhere = await run(WORKER_APP="tests.processes.nowhere:app")
    assert (await wrong.wait(), await nowhere.wait()) == (2, 2)
    for worker in (wrong, nowhere):
        assert worker.output.startswith("Error: WORKER_")
        assert worker.output.count("\n") == 0


async def test_what_no_restart_mends_ends_them_all(run: Run, postgres: EmbeddedPostgres, redis_url: str) -> None:
    """A missing migration, and servers that refuse us."""
    unmigrated = await run(DATABASE_URL=postgres.url)
    unknown = await run(DATABASE_URL=postgres.database_url("nothing"))
    assert (await unmigrated.wait(), await unknown.wait()) == (2, 3)
    with SyncRedis.from_url(redis_url) as redis:
        redis.config_set("requirepass", "hunter2")
        try:
            refused = await run()
            assert await refused.wait() == 3
        finally:
            redis.config_set("requirepass", "")
    for worker in (unmigrated, unknown, refused):
        assert len([line for line in worker.lines if line.get("event") == "process_started"]) == 2


async def test_processes_wait_for_a_server_that_is_away(run: Run, valkey: object) -> None:
    worker = await run("--processes", "3", REDIS_URL="redis://127.0.0.1:1")
    await worker.wait_for("waiting_for_server", server="Redis", count=3)
    assert await worker.stop() == 0
    assert not [line for line in worker.lines if line.get("event") == "process_died"]
