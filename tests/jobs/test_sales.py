from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.sales.contracts import RefreshDaily
from tests.jobs.shop import Shop, a_user, an_order, rows
from worker.app import App
from worker.faults import is_conflict
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.testing import drain, perform

DAY = date(2021, 3, 1)
MIDNIGHT = datetime(2021, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


async def test_refresh_counts_what_was_paid_on_that_day_in_utc(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await an_order(session, "before", status="paid", paid_at=MIDNIGHT - SECOND)
    await an_order(session, "first", lines=(("TEA", 1),), status="paid", paid_at=MIDNIGHT)
    last = MIDNIGHT + timedelta(days=1) - SECOND
    await an_order(
        session, "last", lines=(("TEA", 2),), status="shipped", paid_at=last, shipped_at=last + timedelta(days=9)
    )
    await an_order(session, "cancelled", status="cancelled", paid_at=MIDNIGHT, cancelled_at=MIDNIGHT)
    await an_order(session, "after", status="paid", paid_at=MIDNIGHT + timedelta(days=1))
    result = await perform(app, RefreshDaily(day=DAY), session)
    assert result == {"day": "2021-03-01", "orders": 2, "revenue_cents": 300}
    assert await rows(session, "select day, orders, revenue_cents from daily_sales") == [(DAY, 2, 300)]


async def test_refresh_again_replaces_the_row(app: App, session: AsyncSession) -> None:
    await a_user(session)
    empty = await perform(app, RefreshDaily(day=DAY), session)
    assert empty == {"day": "2021-03-01", "orders": 0, "revenue_cents": 0}
    await an_order(session, status="paid", paid_at=MIDNIGHT)
    await perform(app, RefreshDaily(day=DAY), session)
    assert await rows(session, "select day, orders, revenue_cents from daily_sales") == [(DAY, 1, 200)]


async def test_without_a_day_it_is_the_day_before_the_job_was_enqueued(shop: Shop) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    result = await shop.result(RefreshDaily())
    assert date.fromisoformat(result["day"]) - yesterday in (
        timedelta(0),
        timedelta(days=1),
    )  # midnight may have passed


async def test_a_chosen_job_id_has_no_enqueue_time_and_still_means_yesterday(shop: Shop) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    async with AsyncSession(shop.engine) as session, session.begin():
        enqueue(session, RefreshDaily(), job_id="nightly")
    [(_, outcome)] = await drain(shop.app, shop.engine)
    assert isinstance(outcome, Completed)
    assert date.fromisoformat(outcome.result["day"]) >= yesterday  # type: ignore[index, arg-type, call-overload]


async def test_an_older_view_never_replaces_a_newer_one(shop: Shop) -> None:
    isolation = shop.app.handlers["sales.refresh_daily"].isolation
    async with shop.engine.connect() as connection:
        _ = await connection.execution_options(isolation_level=isolation)
        await connection.execute(text("select"))  # from here on it sees the shop as it is now
        await shop.result(RefreshDaily(day=DAY))
        with pytest.raises(DBAPIError) as caught:
            await perform(shop.app, RefreshDaily(day=DAY), AsyncSession(connection))
    assert is_conflict(caught.value)  # the runtime runs such a job again at once
