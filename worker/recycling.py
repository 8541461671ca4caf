"""Recycling: a process that has done its share, or grown too large, ends in order; what watches it starts another.

It takes no more jobs and lets those that run come to their end, within their timeouts: a long job must not be rolled
back again and again because short ones beside it were many.
"""

import asyncio
import random
import resource
import sys
from pathlib import Path

import structlog

from worker.app_worker import AppWorker

CHECK_EVERY_S = 0.2
SPREAD = 0.1
"""Limits are drawn within ± this share, so that processes which began together don't recycle together."""
STATM = Path("/proc/self/statm")


async def recycle_when_due(worker: AppWorker, max_jobs: int | None, max_rss_mb: int | None) -> None:
    """Tell the worker to end: after about `max_jobs` jobs, or at about `max_rss_mb` of memory. None: never.

    Memory is looked at once a job has ended: a limit below what an idle process takes must not keep all work undone.
    """
    if max_jobs is None and max_rss_mb is None:
        return
    log, factor = structlog.get_logger("worker.recycling"), random.uniform(1 - SPREAD, 1 + SPREAD)  # noqa: S311
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        counts: list[int] = [worker.jobs_complete, worker.jobs_failed, worker.jobs_retried]
        jobs = sum(counts)
        rss_mb = resident_mb()
        if (max_jobs and jobs >= max_jobs * factor) or (max_rss_mb and jobs and rss_mb >= max_rss_mb * factor):
            log.info("recycling", jobs=jobs, rss_mb=round(rss_mb), running=len(worker.tasks))
            worker.drain()
            return


def resident_mb() -> float:
    """Memory that this process has in RAM, in MiB. Where there is no /proc (macOS): the most that it ever had."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
