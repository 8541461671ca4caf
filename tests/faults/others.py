"""Workers without an app's runtime: plain arq functions from Redis alone, and the testing kit on another engine."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from signal import Signals
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from tests.faults.points import VICTIM
from tests.faults.stage import Asked, Stage
from worker.broker import arq_settings
from worker.consumer import Worker
from worker.shield import cancel_all, is_cancelled
from worker.standalone import connect
from worker.testing import drain

OFTEN_S = 0.02


async def leave(ctx: dict[Any, Any]) -> None:
    """A plain arq function. Its transaction is its own affair."""
    async with AsyncSession(ctx["producer"]) as session, session.begin():
        job_id = ctx["job_id"]
        await session.execute(
            text("insert into effect (id, note) values (:id, :note)"), {"id": job_id, "note": f"{job_id} once"}
        )


async def _hook(_ctx: dict[Any, Any]) -> None:
    pass


@asynccontextmanager
async def _made(stage: Stage, **arguments: Any) -> AsyncGenerator[Worker]:
    """A worker, which is closed at the end."""
    worker = Worker(
        [leave],
        redis_settings=arq_settings(stage.settings["redis_url"]),
        ctx={"producer": stage.engine},
        handle_signals=False,
        poll_delay=OFTEN_S,
        keep_result=0,
        on_startup=_hook,
        on_shutdown=_hook,
        after_job_end=_hook,
        **arguments,
    )
    try:
        yield worker
    finally:
        await worker.close()


async def plain(stage: Stage) -> None:
    async with _made(stage) as worker:
        await worker.async_run()


async def plain_burst(stage: Stage) -> None:
    """Ends after one job."""
    async with _made(stage, burst=True, max_burst_jobs=1) as worker:
        await worker.async_run()


async def plain_stopped(stage: Stage) -> None:
    """Told to stop, with time for what runs, as its first job begins."""

    async def stop(_ctx: dict[Any, Any]) -> None:
        worker.handle_sig_wait_for_completion(Signals.SIGTERM)

    async with _made(stage, job_completion_wait=1, on_job_start=stop) as worker:
        worker.main_task = asyncio.create_task(worker.main())
        await asyncio.wait((worker.main_task,))


async def plain_closed(stage: Stage) -> None:
    """Closed as a job ends, while its main still runs, by somebody who has a loop of their own."""
    ended = asyncio.Event()

    async def tell(_ctx: dict[Any, Any]) -> None:
        ended.set()

    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(_made(stage, on_job_end=tell))
        running = [asyncio.create_task(worker.main()), asyncio.create_task(ended.wait())]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            await stack.aclose()
        finally:
            await cancel_all(running)


async def by_hand(stage: Stage) -> None:
    """As arq's users do who have a loop of their own."""
    async with _made(stage) as worker:
        worker._pool = await connect(worker)
        while not is_cancelled():  # which redis-py may have swallowed
            await worker._poll_iteration()
            await worker.start_jobs([])
            await asyncio.sleep(OFTEN_S)


async def ask_plain(stage: Stage) -> Asked:
    """Arq's own promise: at least once, and nothing is left."""
    job = await stage.redis.enqueue_job("leave")
    assert job is not None
    return Asked([f"{job.job_id} once"], [job.job_id], needs_run=False, at_least_once=True)


async def draining(stage: Stage) -> None:
    """Serve the outbox without Redis, on an engine that isn't the runtime's."""
    url = stage.settings["database_url"].replace("postgresql://", "postgresql+asyncpg://")
    engine, victim = create_async_engine(url, poolclass=NullPool), VICTIM.get()
    assert victim is not None
    drivers: list[Any] = []

    def keep(dbapi: Any, _record: object) -> None:
        drivers.append(dbapi.driver_connection)

    event.listen(engine.sync_engine, "connect", keep)
    victim.lines.append(lambda: [driver.terminate() for driver in drivers])
    while True:
        await drain(stage.app, engine)
        await asyncio.sleep(OFTEN_S)
