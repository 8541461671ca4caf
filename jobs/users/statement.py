"""users.statement."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from jobs.orders.models import SOLD, Order
from jobs.users.contracts import UserStatement
from jobs.users.models import UnknownUser, User


async def user_statement(job: UserStatement, session: AsyncSession) -> dict[str, object]:
    """Two statements: the user, and all orders, each joined with its lines."""
    with_orders = selectinload(User.orders).joinedload(Order.lines)
    user = (await session.execute(select(User).where(User.id == job.user_id).options(with_orders))).scalar_one_or_none()
    if user is None:
        raise UnknownUser(f"There is no user {job.user_id}; give the id of one.")
    sold = [order for order in user.orders if order.status in SOLD]
    return {
        "orders": len(sold),
        "spent_cents": sum(line.amount_cents for order in sold for line in order.lines),
        "first_order": sold[0].placed_at if sold else None,
        "last_order": sold[-1].placed_at if sold else None,
    }
