"""Workers that are stopped, killed or stuck, as processes: their jobs go on elsewhere, and each has one effect."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.app import ROWS_A_CHUNK
from jobs.orders.contracts import ImportOrders, PayOrder
from jobs.orders.models import Order, OrderLine
from jobs.users.models import User
from tests.conftest import StartWorker
from tests.consumer.app import Deaf, Hopeless, Stubborn, Stuck, Wait
from tests.consumer.conftest import Effects
from tests.consumer.redis_proxy import RedisProxy, sha_of
from tests.support.locks import locked as holding
from tests.support.processes import WorkerProcess
from tests.support.waiting import wait_until
from worker.models import Outbox, Run
from worker.outbox import enqueue
from worker.queue import Queue
from worker.settle_script import SETTLE

ENV = {
    "WORKER_APP": "tests.consumer.app:app",
    "WORKER_LEASE": "1",
    "WORKER_SHUTDOWN_GRACE": "1",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_POLL_DELAY": "0.02",
}
SHOP = {**ENV, "WORKER_APP": "jobs.app:app"}
LOCK = 7

Locked = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def locked(engine: AsyncEngine) -> Locked:
    """Hold the lock for which handlers wait, until the block ends."""
    return partial(holding, engine, LOCK)


async def enqueued(session: AsyncSession, job: Any) -> str:
    job_id = enqueue(session, job)
    await session.commit()
    return job_id


async def test_a_worker_that_is_told_to_stop_hands_its_job_back_and_ends_with_exit_code_0(
    arq: ArqRedis, session: AsyncSession, start_worker: StartWorker, locked: Locked, effects: Effects
) -> None:
    job_id = await enqueued(session, Wait(lock=LOCK))
    async with locked():
        worker = await start_worker(**ENV)
        await worker.wait_for("began")
        assert await worker.stop() == 0
    assert await arq.exists(f"arq:in-progress:{job_id}") == 0
    assert await arq.zscore("arq:queue", job_id) is not None
    assert await effects() == []


async def test_a_killed_workers_job_runs_elsewhere_when_its_lease_has_run_out(
    session: AsyncSession, start_worker: StartWorker, locked: Locked, effects: Effects
) -> None:
    job_id = await enqueued(session, Wait(lock=LOCK))
    async with locked():
        first = await start_worker(**ENV)
        second = await start_worker(**ENV)
        holder, other = await first_to_begin(first, second)
        await holder.kill()
        await other.wait_for("began")
    await other.wait_for("completed", job_id=job_id)
    assert await effects() == [job_id]


async def first_to_begin(*workers: WorkerProcess) -> tuple[WorkerProcess, ...]:
    """Return the workers, with the one first that has begun a job."""
    waits = {asyncio.create_task(worker.wait_for("began")): worker for worker in workers}
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return tuple(sorted(workers, key=lambda worker: all(waits[wait] is not worker for wait in done)))


async def test_a_worker_killed_between_commit_and_acknowledgement_leaves_duplicates_and_the_order_is_paid_once(
    arq: ArqRedis, session: AsyncSession, start_worker: StartWorker, proxy: RedisProxy
) -> None:
    """One order is paid through the outbox, one by a job that went straight to Redis."""
    orders = [await place_order(session, reference) for reference in ("R-1", "R-2")]
    job_ids = {enqueue(session, PayOrder(order_id=orders[0])), await Queue(arq).enqueue(PayOrder(order_id=orders[1]))}
    await session.commit()
    proxy.hold_back(sha_of(SETTLE))
    first = await start_worker(**SHOP, REDIS_URL=proxy.url)
    for job_id in job_ids:
        await first.wait_for("completed", job_id=job_id)  # it has committed
    await proxy.holds.wait()
    for job_id in job_ids:
        assert await arq.exists(f"arq:job:{job_id}"), "it was acknowledged"
    await first.kill()
    paid = select(Order.paid_at).order_by(Order.id)
    before = (await session.scalars(paid)).all()
    assert all(before)
    second = await start_worker(**SHOP)
    for job_id in job_ids:
        await second.wait_for("duplicate", job_id=job_id)

    async def is_all_done() -> bool:
        await session.rollback()
        return (await session.execute(select(func.count()).select_from(Outbox))).scalar_one() == 0

    await wait_until(is_all_done)
    assert await second.stop() == 0
    assert (await session.scalars(paid)).all() == before
    runs = select(Run.name, func.count()).group_by(Run.name)
    assert dict((await session.execute(runs)).all()) == {"orders.pay": 2, "orders.ship": 2}


async def test_a_worker_killed_in_the_middle_of_an_import_is_resumed_and_no_order_is_there_twice(
    session: AsyncSession, engine: AsyncEngine, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The third chunk meets an order that the test has locked, and there the worker is killed."""
    count = 2 * ROWS_A_CHUNK + 2000
    rows = (f"R-{n},ann@example.com,2026-01-01T10:00:00Z,SKU,1,2.50\n" for n in range(count))
    (tmp_path / "orders.csv").write_text("reference,email,placed_at,sku,quantity,amount\n" + "".join(rows))
    await place_order(session, f"R-{count - 1}")
    job_id = await enqueued(session, ImportOrders(path="orders.csv"))
    async with engine.begin() as lock:
        await lock.execute(select(Order.id).with_for_update())
        first = await start_worker(**SHOP)

        async def is_in_the_third_chunk() -> bool:
            async with AsyncSession(engine) as look:
                progress = await look.execute(select(Run.done).where(Run.id == job_id))
                return progress.scalar_one_or_none() == 2 * ROWS_A_CHUNK

        await wait_until(is_in_the_third_chunk, timeout=30)
        await first.kill()
    second = await start_worker(**SHOP)
    await second.wait_for("completed", job_id=job_id)
    run = (await session.execute(select(Run).where(Run.id == job_id))).scalar_one()
    assert run.result == {"read": count, "inserted": count - 1, "updated": 1, "rejected": 0, "rejects_path": None}
    stored = select(func.count(), func.count(Order.reference.distinct()), func.sum(Order.total_cents))
    assert tuple((await session.execute(stored)).one()) == (count, count, count * 250)
    assert (await session.execute(select(func.count()).select_from(OrderLine))).scalar_one() == count


async def place_order(session: AsyncSession, reference: str) -> int:
    """Return the id of a pending order of ann@example.com."""
    email = "ann@example.com"
    user = (await session.execute(select(User).where(User.email == email))).scalar_one_or_none()
    user = user or User(email=email, name="Ann")
    session.add(user)
    await session.flush()
    order = Order(reference=reference, user_id=user.id, status="pending", total_cents=250)
    session.add(order)
    await session.commit()
    return order.id


async def test_a_worker_that_was_frozen_in_mid_transaction_loses_its_backend_and_survives_when_it_is_woken(
    session: AsyncSession, start_worker: StartWorker, locked: Locked, effects: Effects
) -> None:
    job_id = await enqueued(session, Wait(lock=LOCK))
    async with locked():
        first = await start_worker(**ENV)
        second = await start_worker(**ENV)
        frozen, other = await first_to_begin(first, second)
        frozen.signal(signal.SIGSTOP)
        await other.wait_for("began")  # it holds the run, so the frozen one's transaction has been ended
        frozen.signal(signal.SIGCONT)
        await frozen.wait_for("lease_was_lost", job_id=job_id)
    await other.wait_for("completed", job_id=job_id)
    assert await effects() == [job_id]
    assert await frozen.stop() == 0


async def test_the_jobs_beside_one_that_is_overdue_are_handed_back_before_the_process_ends(
    arq: ArqRedis, session: AsyncSession, start_worker: StartWorker, locked: Locked, effects: Effects
) -> None:
    other = enqueue(session, Wait(lock=LOCK))
    overdue = await enqueued(session, Hopeless())
    async with locked():
        worker = await start_worker(**ENV)
        await worker.wait_for("job_overdue", job_id=overdue)
        assert await worker.wait() == os.EX_SOFTWARE
    await worker.wait_for("jobs_ignore_cancellation", job_ids=[overdue])
    assert await arq.exists(f"arq:in-progress:{other}") == 0
    assert await effects() == []


async def test_a_process_that_its_job_holds_up_ends_itself_with_an_error_and_the_job_goes_on_elsewhere(
    session: AsyncSession, start_worker: StartWorker, effects: Effects
) -> None:
    """One job blocks the event loop beyond its timeout, one ignores its timeout, one lets nobody cancel it."""
    jobs = {"stuck": Stuck(), "stubborn": Stubborn(), "deaf": Deaf()}
    ids = {name: enqueue(session, job, queue=name) for name, job in jobs.items()}
    await session.commit()
    workers = {name: await start_worker(**ENV, WORKER_QUEUES=name) for name in jobs}
    await workers["deaf"].wait_for("began")
    workers["deaf"].signal(signal.SIGTERM)
    for name in ("stuck", "stubborn"):
        await workers[name].wait_for("job_overdue", job_id=ids[name])
    await workers["deaf"].wait_for("jobs_ignore_cancellation", job_ids=[ids["deaf"]])
    assert [await worker.wait() for worker in workers.values()] == [os.EX_SOFTWARE] * 3
    another = await start_worker(**ENV, WORKER_QUEUES="stuck")
    await another.wait_for("completed", job_id=ids["stuck"])
    assert await effects() == [ids["stuck"]]
