"""Jobs about one order each, many in one UPDATE. One that can't be done raises, and comes to stand alone."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

from sqlalchemy import Row, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import any_id
from jobs.orders.contracts import PayOrderBatched, ShipOrder
from jobs.orders.models import MOVES, Order
from worker.outbox import enqueue_many

Moved: TypeAlias = Row[int, int, datetime | None] | Order
"""With id, total_cents and shipped_at."""


async def pay_orders(jobs: Sequence[PayOrderBatched], session: AsyncSession) -> list[dict[str, int]]:
    """Take payment for pending orders, and have them shipped."""
    paid = await _move(session, [job.order_id for job in jobs], "paid")
    enqueue_many(session, [ShipOrder(order_id=order.id) for order in paid])
    return [{"order_id": order.id, "total_cents": order.total_cents} for order in paid]


async def ship_orders(jobs: Sequence[ShipOrder], session: AsyncSession) -> list[dict[str, object]]:
    """Ship paid orders."""
    shipped = await _move(session, [job.order_id for job in jobs], "shipped")
    return [{"order_id": order.id, "shipped_at": order.shipped_at} for order in shipped]


async def _move(session: AsyncSession, ids: Sequence[int], to: Literal["paid", "shipped"]) -> list[Moved]:
    """The orders in the order of `ids`. Raises as `_move_one` does for the first that may not make this move."""
    # Locked by id first, so that two batches can't wait for each other.
    due = select(Order.id).where(Order.id == any_id(ids), Order.status.in_(MOVES[to]))
    due_now = due.order_by(Order.id).with_for_update().cte("due")
    at = {"paid": Order.paid_at, "shipped": Order.shipped_at}[to]
    moved = await session.execute(
        update(Order)
        .where(Order.id == due_now.c.id)
        .values({Order.status: to, at: func.now()})
        .returning(Order.id, Order.total_cents, Order.shipped_at),
    )
    orders = {row.id: row for row in moved.all()}
    # Taken out, so that of two jobs about one order the second is refused, as it would be alone.
    return [orders.pop(each) if each in orders else await _move_one(session, each, to) for each in ids]


async def _move_one(session: AsyncSession, order_id: int, to: Literal["paid", "shipped"]) -> Order:
    """Raises NoResultFound or WrongState, unless the order has just come into a state from which it may be moved."""
    order = await session.get_one(Order, order_id, with_for_update=True)
    if to == "paid":
        order.pay()
    else:
        order.ship()
    await session.flush()
    await session.refresh(order, ["shipped_at"])  # the server's time
    return order
