"""Many orders in few statements."""

from sqlalchemy import BigInteger, Text, case, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import any_id, rows_of
from jobs.orders.contracts import CancelStale, SetStatus
from jobs.orders.models import MOVES, Order
from jobs.orders.stock import give_back
from worker.chunk import Chunk, Step
from worker.keys import within

LEGAL = [(before, after) for after, befores in MOVES.items() for before in befores]


async def set_status(job: SetStatus, session: AsyncSession) -> dict[str, int]:
    last = dict(job.changes)
    # Locked by id first, so that two such jobs can't wait for each other.
    await session.execute(select(Order.id).where(Order.id == any_id(list(last))).order_by(Order.id).with_for_update())
    change = rows_of("change", id=(BigInteger(), list(last)), status=(Text(), list(last.values())))
    to = change.c.status
    moved = await session.execute(
        update(Order)
        .where(Order.id == change.c.id, tuple_(Order.status, to).in_(LEGAL))
        .values(
            status=to,
            paid_at=case((to == "paid", func.now()), else_=Order.paid_at),
            shipped_at=case((to == "shipped", func.now()), else_=Order.shipped_at),
            cancelled_at=case((to == "cancelled", func.now()), else_=Order.cancelled_at),
        )
        .returning(Order.id, Order.status),
    )
    rows = moved.all()
    await give_back(session, [row.id for row in rows if row.status == "cancelled"])
    return {"updated": len(rows), "skipped": len(job.changes) - len(rows)}


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
