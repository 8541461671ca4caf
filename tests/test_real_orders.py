"""The main job: 23,544 real customers and their 69,659 orders, imported by a running worker."""

import shutil
from calendar import monthrange
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.orders.contracts import ImportOrders
from jobs.sales.contracts import RefreshDaily
from jobs.users.contracts import ImportUsers, UserStatement
from tests.conftest import StartWorker
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.job import Job
from worker.outbox import enqueue, enqueue_many

DATA = Path(__file__).parents[2] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real orders (shared/data, beside the checkout) aren't here; they aren't part of it"
)

# By hand: the day's orders that were paid, as the file has them, without the runtime and without the domain's code.
SALES_BY_HAND = """
select (paid_at at time zone 'UTC')::date as day, count(*) as orders, sum(total_cents)::bigint as revenue_cents
from orders where status in ('paid', 'shipped') and paid_at >= '2021-03-01 00:00Z' and paid_at < '2021-04-01 00:00Z'
group by 1 order by 1
"""
BUSIEST_USER = "select user_id from orders group by user_id order by count(*) desc, user_id limit 1"
STATEMENT_BY_HAND = """
select count(distinct o.id) as orders, sum(l.amount_cents)::bigint as spent_cents, min(o.placed_at) as first_order,
    max(o.placed_at) as last_order
from orders as o join order_lines as l on l.order_id = o.id where o.user_id = :user_id
"""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=2, application="ratchet test")
    yield engine
    await engine.dispose()


async def result_of(engine: AsyncEngine, job: Job) -> Any:
    """Enqueue one job, wait for its end, and return its result."""
    async with AsyncSession(engine) as session, session.begin():
        job_id = enqueue(session, job)

    async def is_final() -> bool:
        return (
            await rows(engine, "select id from worker.run where id = :id and finished_at is not null", id=job_id)
        ) != []

    await wait_until(is_final, timeout=90)
    [run] = await rows(engine, "select status, error, result from worker.run where id = :id", id=job_id)
    assert run.status == "completed", run.error
    return run.result


async def rows(engine: AsyncEngine, query: str, **parameters: object) -> list[Any]:
    async with engine.connect() as connection:
        return list(await connection.execute(text(query), parameters))


async def test_the_real_orders_go_through_a_running_worker_to_the_cent(
    engine: AsyncEngine, start_worker: StartWorker, tmp_path: Path
) -> None:
    for name in ("cdnow_users.csv", "cdnow_orders.csv"):
        shutil.copyfile(DATA / name, tmp_path / name)
    worker = await start_worker()

    users = await result_of(engine, ImportUsers(path="cdnow_users.csv"))
    orders = await result_of(engine, ImportOrders(path="cdnow_orders.csv"))

    assert users == {"read": 23_544, "inserted": 23_544, "updated": 0, "rejected": 0, "rejects_path": None}
    assert orders == {"read": 69_659, "inserted": 69_659, "updated": 0, "rejected": 0, "rejects_path": None}
    [total] = await rows(engine, "select count(*) as orders, sum(total_cents)::bigint as cents from orders")
    assert (total.orders, total.cents) == (69_659, 250_031_563)

    # A month of sales, day by day, against SQL run by hand.
    days = [date(2021, 3, day + 1) for day in range(monthrange(2021, 3)[1])]
    async with AsyncSession(engine) as session, session.begin():
        enqueue_many(session, [RefreshDaily(day=day) for day in days])

    async def all_refreshed() -> bool:
        [left] = await rows(engine, "select count(*) as refreshed from daily_sales")
        return bool(left.refreshed == len(days))

    await wait_until(all_refreshed, timeout=30)
    refreshed = await rows(engine, "select day, orders, revenue_cents from daily_sales where orders > 0 order by day")
    assert refreshed == await rows(engine, SALES_BY_HAND)

    # One user's statement, against SQL run by hand.
    [busiest] = await rows(engine, BUSIEST_USER)
    [by_hand] = await rows(engine, STATEMENT_BY_HAND, user_id=busiest.user_id)
    statement = await result_of(engine, UserStatement(user_id=busiest.user_id))
    assert (statement["orders"], statement["spent_cents"]) == (by_hand.orders, by_hand.spent_cents)
    assert statement["first_order"][:19] == by_hand.first_order.isoformat()[:19]
    assert statement["last_order"][:19] == by_hand.last_order.isoformat()[:19]
    assert await worker.stop() == 0
