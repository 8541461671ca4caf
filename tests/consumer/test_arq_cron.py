"""arq's cron jobs under our Worker: what arq's own tests (tests/arq_suite) don't ask of them."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.cron import CronJob, cron
from redis.exceptions import RedisError

from tests.consumer.conftest import Make
from tests.consumer.redis_proxy import RedisProxy
from tests.consumer.test_arq_functions import double, result
from tests.support.waiting import wait_until
from worker.broker import connect_broker
from worker.consumer import Worker


class Ticks:
    """A cron job that is due when the test says so, and notes the ids of its runs."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def job(self, **options: Any) -> CronJob:
        """One worker's own: it keeps when it is due next."""

        async def tick(ctx: dict[Any, Any]) -> None:
            self.ran.append(ctx["job_id"])

        return cron(tick, name="tick", month=1, day=1, hour=0, minute=0, **options)


def due(worker: Worker, ago: timedelta = timedelta(0)) -> None:
    """Let its cron job be due now, or have been `ago`."""
    [cron_job] = worker.cron_jobs
    cron_job.next_run = datetime.now(worker.timezone) - ago


@pytest.fixture
def brief_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the id of a cron job that has ended in progress for a moment, instead of arq's minute."""
    monkeypatch.setattr("arq.worker.keep_cronjob_progress", 0.01)


@pytest.mark.usefixtures("brief_progress")
@pytest.mark.parametrize("options", [{}, {"job_id": "chosen"}])
async def test_a_worker_that_was_cut_off_runs_no_tick_again_that_another_has_run(
    arq: ArqRedis, make: Make, proxy: RedisProxy, options: dict[str, Any]
) -> None:
    ticks, client = Ticks(), connect_broker(proxy.url)
    cut_off = make(double, cron_jobs=[ticks.job(**options)], redis_pool=client, burst=False)
    other = make(double, cron_jobs=[ticks.job(**options)])
    main = asyncio.create_task(cut_off.main())
    await arq.enqueue_job("double", 1, _job_id="before")
    await result(arq, "before")
    await proxy.away()

    async def is_away() -> bool:
        return cut_off._trouble.is_away()

    await wait_until(is_away)
    due(cut_off)
    other.cron_jobs[0].next_run = cut_off.cron_jobs[0].next_run
    await other.main()
    assert len(ticks.ran) == 1

    async def is_out_of_progress() -> bool:
        return not await arq.exists(f"arq:in-progress:{ticks.ran[0]}")

    await wait_until(is_out_of_progress)
    await proxy.back()
    await arq.enqueue_job("double", 1, _job_id="after")
    await result(arq, "after")
    main.cancel()
    await asyncio.gather(main, return_exceptions=True)
    await client.aclose()
    assert len(ticks.ran) == 1


async def test_a_tick_that_redis_could_not_be_told_of_is_told_again(
    arq: ArqRedis, make: Make, proxy: RedisProxy
) -> None:
    ticks, client = Ticks(), connect_broker(proxy.url)
    worker = make(cron_jobs=[ticks.job()], redis_pool=client)
    await worker._poll_iteration()
    due(worker)
    await proxy.away()
    with pytest.raises(RedisError):
        await worker.heart_beat()
    await proxy.back()
    await worker.main()
    await client.aclose()
    assert len(ticks.ran) == 1


async def test_a_full_redis_takes_no_tick_and_what_lies_in_it_is_done(arq: ArqRedis, make: Make) -> None:
    ticks = Ticks()
    await arq.enqueue_job("double", 21, _job_id="mine")
    worker = make(double, cron_jobs=[ticks.job()], burst=False)
    due(worker)
    await arq.config_set("maxmemory", 1)
    main = asyncio.create_task(worker.main())
    try:
        await wait_until(lambda: is_gone(arq, "arq:job:mine"))
    finally:
        await arq.config_set("maxmemory", 0)

    async def has_ticked() -> bool:
        return len(ticks.ran) == 1

    await wait_until(has_ticked)
    main.cancel()
    await asyncio.gather(main, return_exceptions=True)


async def is_gone(arq: ArqRedis, key: str) -> bool:
    return not await arq.exists(key)


@pytest.mark.usefixtures("brief_progress")
async def test_a_tick_that_is_noticed_late_runs_unless_it_is_later_than_a_day(arq: ArqRedis, make: Make) -> None:
    ticks = Ticks()
    late, too_late = make(cron_jobs=[ticks.job()]), make(cron_jobs=[ticks.job()])
    due(late, timedelta(hours=23))
    due(too_late, timedelta(hours=25))
    await too_late.main()
    assert ticks.ran == []
    await late.main()
    assert len(ticks.ran) == 1


async def test_each_worker_runs_a_tick_that_is_not_unique(arq: ArqRedis, make: Make) -> None:
    ticks = Ticks()
    first, second = make(cron_jobs=[ticks.job(unique=False)]), make(cron_jobs=[ticks.job(unique=False)])
    due(first)
    second.cron_jobs[0].next_run = first.cron_jobs[0].next_run
    await first.main()
    await second.main()
    assert len(ticks.ran) == 2


async def test_a_worker_reads_its_own_ticks_whatever_the_pool_that_it_was_given_writes(redis_url: str) -> None:
    """An ArqRedis without serializers writes pickles, and the worker reads JSON."""
    ticks = Ticks()
    async with ArqRedis.from_url(redis_url) as pool:
        worker = Worker(cron_jobs=[ticks.job()], redis_pool=pool, poll_delay=0.02, burst=True, handle_signals=False)
        due(worker)
        await worker.main()
    assert len(ticks.ran) == 1
