"""WORKER_MAX_JOBS and WORKER_MAX_RSS_MB: a process ends in order, another takes its place, and no job is lost."""

import resource
import sys
from pathlib import Path

import pytest

from tests.processes.app import Step, Wait
from tests.processes.conftest import LOCK, Effects, Enqueue, Locked, Run
from tests.support.processes import WorkerProcess
from worker import recycling
from worker.recycling import resident_mb

ONE_JOB = {"WORKER_MAX_JOBS": "1"}  # ± 10 %: two at most


async def work_until_recycled(worker: WorkerProcess, enqueued: Enqueue, *, times: int, grow_mb: int = 0) -> int:
    """Give it a job, and the next when that is done, until so many processes were recycled. Returns how many jobs."""
    done = 0
    recycled: list[object] = []
    while len(recycled) < times:
        assert done < 200, worker.output
        [job_id] = await enqueued(Step(grow_mb=grow_mb))
        await worker.wait_for("completed", job_id=job_id)
        done += 1
        recycled = [line for line in worker.lines if line.get("event") == "process_recycled"]
    return done


async def test_after_so_many_jobs_another_process_takes_over_and_each_job_is_done_once(
    run: Run, enqueued: Enqueue, effects: Effects
) -> None:
    worker = await run(**ONE_JOB)
    done = await work_until_recycled(worker, enqueued, times=3)
    assert await worker.stop() == 0
    pids = await effects()
    assert len(pids) == done
    assert len(set(pids)) >= 3
    assert not [line for line in worker.lines if line.get("event") == "process_died"]


async def test_a_process_that_has_grown_is_replaced(run: Run, enqueued: Enqueue, effects: Effects) -> None:
    limit_mb = 300
    worker = await run(WORKER_MAX_RSS_MB=str(limit_mb))
    done = await work_until_recycled(worker, enqueued, times=1, grow_mb=100)
    told = await worker.wait_for("recycling")
    assert told["rss_mb"] >= limit_mb * 0.9
    assert await worker.stop() == 0
    assert len(await effects()) == done >= 2


async def test_a_limit_that_is_too_low_still_lets_jobs_be_done(run: Run, enqueued: Enqueue, effects: Effects) -> None:
    worker = await run(WORKER_MAX_RSS_MB="1")
    done = await work_until_recycled(worker, enqueued, times=2)
    assert await worker.stop() == 0
    assert len(await effects()) == done


async def test_jobs_that_run_come_to_their_end_first_however_short_the_grace(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    """One process alone, which then ends with 0 for whoever watches it."""
    async with locked():
        worker = await run(**ONE_JOB, WORKER_PROCESSES="1", WORKER_CONCURRENCY="4", WORKER_SHUTDOWN_GRACE="0")
        [waiting] = await enqueued(Wait(lock=LOCK))
        await worker.wait_for("began")
        await enqueued(Step(), Step())
        await worker.wait_for("recycling")
        await worker.wait_for("completed", count=2)
    await worker.wait_for("completed", job_id=waiting)
    assert await worker.wait() == 0
    assert len(await effects()) == 3


async def test_a_process_that_waits_for_its_last_job_still_obeys_a_signal(
    run: Run, enqueued: Enqueue, effects: Effects, locked: Locked
) -> None:
    async with locked():
        worker = await run(**ONE_JOB, WORKER_PROCESSES="1", WORKER_CONCURRENCY="4", WORKER_LOG_LEVEL="debug")
        [waiting] = await enqueued(Wait(lock=LOCK))
        await worker.wait_for("began")
        await enqueued(Step(), Step())
        await worker.wait_for("recycling")
        await worker.wait_for("completed", count=2)
        assert await worker.stop() == 0
    await worker.wait_for("stopping", grace_s=1.0, running=1)
    await worker.wait_for("released", job_id=waiting)
    assert len(await effects()) == 2


def test_where_there_is_no_proc_the_peak_stands_for_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = resident_mb()
    monkeypatch.setattr(recycling, "STATM", tmp_path / "none")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    assert 1 < now <= resident_mb() + 1
    assert resident_mb() >= most
