"""Sales by day, computed from the orders."""

from datetime import UTC, datetime, time, timedelta

from sqlalchemy import BigInteger, cast, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.models import SOLD, Order
from jobs.sales.contracts import RefreshDaily
from jobs.sales.models import DailySales
from worker.handler import Handler
from worker.run import current_run


async def refresh_daily(job: RefreshDaily, session: AsyncSession) -> dict[str, object]:
    day = job.day or current_run().enqueued_at.astimezone(UTC).date() - timedelta(days=1)
    begin = datetime.combine(day, time.min, UTC)
    sold = select(
        literal(day), func.count(), cast(func.coalesce(func.sum(Order.total_cents), 0), BigInteger), func.now()
    ).where(Order.status.in_(SOLD), Order.paid_at >= begin, Order.paid_at < begin + timedelta(days=1))
    row = insert(DailySales).from_select(["day", "orders", "revenue_cents", "refreshed_at"], sold)
    fresh = {name: row.excluded[name] for name in ("orders", "revenue_cents", "refreshed_at")}
    upsert = row.on_conflict_do_update(index_elements=[DailySales.day], set_=fresh)
    figures = (await session.execute(upsert.returning(DailySales.orders, DailySales.revenue_cents))).one()
    return {"day": day, "orders": figures.orders, "revenue_cents": figures.revenue_cents}


HANDLERS = (
    # Of two that refresh one day, the later must not write what it read before the earlier wrote: at this isolation
    # PostgreSQL refuses that, and the runtime runs it again at once.
    Handler(RefreshDaily, refresh_daily, isolation="REPEATABLE READ"),
)
