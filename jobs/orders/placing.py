"""orders.place."""

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.contracts import PlaceOrder
from jobs.orders.models import Order, OrderLine
from jobs.orders.stock import take
from jobs.users.models import UnknownUser, User


async def place_order(job: PlaceOrder, session: AsyncSession) -> dict[str, int]:
    same = select(Order).where(Order.reference == job.reference)
    order = (await session.scalars(same)).one_or_none()
    if order is None:
        order = await _claim(job, session)
        if order is None:
            order = (await session.scalars(same)).one()
        else:
            await _fill(order, job, session)
    return {"order_id": order.id, "total_cents": order.total_cents}


async def _claim(job: PlaceOrder, session: AsyncSession) -> Order | None:
    """An order without lines. None: another transaction had the reference first, and has committed.

    The reference is claimed before any stock is taken: of two jobs with one reference the second waits here, and never
    finds out of stock what the first has just bought.
    """
    user = select(User.id).where(func.lower(User.email) == func.lower(job.email))
    user_id = (await session.scalars(user)).one_or_none()
    if user_id is None:
        raise UnknownUser(f"The order {job.reference!r} has the e-mail address of no user; create the user first.")
    claim = insert(Order).values(reference=job.reference, user_id=user_id, total_cents=0)
    claim = claim.on_conflict_do_nothing(index_elements=[Order.reference])
    return (await session.scalars(claim.returning(Order))).one_or_none()


async def _fill(order: Order, job: PlaceOrder, session: AsyncSession) -> None:
    prices = await take(session, job.lines)
    lines = [
        OrderLine(order_id=order.id, line_no=number, sku=sku, quantity=quantity, amount_cents=quantity * prices[sku])
        for number, (sku, quantity) in enumerate(job.lines, start=1)
    ]
    session.add_all(lines)
    order.total_cents = sum(line.amount_cents for line in lines)
