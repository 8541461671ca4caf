"""The stock of products. Rows are locked in sku order everywhere, so that no two jobs wait for each other's products.

An import that replaces orders locks products before new references, where `orders.place` has it the other way round: a
deadlock of these two is possible, and the runtime tries the loser again at once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.arrays import any_id
from jobs.orders.models import Order, OrderLine
from jobs.products.models import Product
from worker.errors import Permanent


class UnknownSku(Permanent):
    """No product has this sku."""


class OutOfStock(Permanent):
    """Fewer pieces are left than are wanted."""


async def take(session: AsyncSession, lines: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    """Take the stock of (sku, quantity) lines and return each sku's price in cents. Untracked products stay unlocked.

    Raises UnknownSku or OutOfStock.
    """
    wanted = Counter[str]()
    for sku, quantity in lines:
        wanted[sku] += quantity
    chosen = select(Product).where(Product.sku.in_(wanted))
    found = {product.sku: product for product in await session.scalars(chosen)}
    if missing := sorted(wanted.keys() - found.keys()):
        raise UnknownSku(f"No product has the sku {missing[0]!r}; add it, or order another.")
    # Locked, the rows are read again: what was read above may have been sold meanwhile.
    tracked = chosen.where(Product.stock.is_not(None)).order_by(Product.sku).with_for_update()
    for product in await session.scalars(tracked, execution_options={"populate_existing": True}):
        left = (product.stock or 0) - wanted[product.sku]
        if left < 0:
            short = f"{wanted[product.sku]} of {product.sku!r} are wanted and {product.stock} are left"
            raise OutOfStock(f"{short}; order less, or restock.")
        product.stock = left
    return {sku: product.price_cents for sku, product in found.items()}


async def give_back(session: AsyncSession, order_ids: Sequence[int]) -> None:
    """Give back what the lines of these orders took. Imported lines took nothing."""
    if not order_ids:
        return
    back = (
        select(OrderLine.sku, func.sum(OrderLine.quantity).label("quantity"))
        .join(Order, Order.id == OrderLine.order_id)
        .where(Order.id == any_id(order_ids), Order.imported_by.is_(None))
        .group_by(OrderLine.sku)
        .cte("back")
    )
    tracked = Product.stock.is_not(None)
    await session.execute(
        select(Product.sku).where(tracked, Product.sku.in_(select(back.c.sku))).order_by(Product.sku).with_for_update()
    )
    await session.execute(
        update(Product).where(tracked, Product.sku == back.c.sku).values(stock=Product.stock + back.c.quantity)
    )
