"""Many orders in few statements."""

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import any_id
from jobs.orders.contracts import CancelStale, SetStatus
from jobs.orders.models import MOVES, Order
from jobs.orders.stock import give_back
from worker.bulk import update_many
from worker.chunk import Chunk, Step
from worker.keys import within


async def set_status(job: SetStatus, session: AsyncSession) -> dict[str, int]:
    last = dict(job.changes)
    now = (await session.execute(select(func.now()))).scalar_one()
    # Locked by id, so that two such jobs can't wait for each other.
    orders = select(Order.id, Order.status, Order.paid_at, Order.shipped_at, Order.cancelled_at)
    locked = await session.execute(orders.where(Order.id == any_id(last)).order_by(Order.id).with_for_update())
    rows = [
        (
            order.id,
            to,
            now if to == "paid" else order.paid_at,
            now if to == "shipped" else order.shipped_at,
            now if to == "cancelled" else order.cancelled_at,
        )
        for order in locked
        if order.status in MOVES.get(to := last[order.id], ())
    ]
    columns = [Order.id, Order.status, Order.paid_at, Order.shipped_at, Order.cancelled_at]
    updated = await update_many(session, Order, columns, rows)
    await give_back(session, [order_id for order_id, to, *_ in rows if to == "cancelled"])
    return {"updated": updated, "skipped": len(job.changes) - updated}


async def cancel_stale(job: CancelStale, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    """Cancel the next stale orders after the cursor."""
    is_stale = Order.status == "pending", Order.placed_at < func.now() - job.older_than, *within(Order.id, chunk)
    total = await session.scalar(select(func.count()).where(*is_stale)) if chunk.cursor is None else None
    stale = (
        select(Order.id)
        .where(*is_stale)
        .order_by(Order.id)
        .limit(chunk.size)
        .with_for_update()  # one that is being paid is waited for, and then is stale no more
        .cte("stale")
    )
    cancelled = await session.scalars(
        update(Order)
        .where(Order.id == stale.c.id)
        .values(status="cancelled", cancelled_at=func.now(), cancel_reason="stale")
        .returning(Order.id)
    )
    ids = cancelled.all()
    await give_back(session, ids)
    return chunk.step(max(ids, default=None), done=len(ids), total=total, counts={"cancelled": len(ids)})
