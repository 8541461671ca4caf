"""What must never be untrue is refused by the database, whoever writes."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.jobs.shop import a_product, a_user, an_order

ORDER = "insert into orders (reference, user_id, total_cents, status) values"
LINE = "insert into order_lines (order_id, line_no, sku, quantity, amount_cents) values"
USER = "(select id from users)"
ID = "(select id from orders)"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("insert into users (email, name) values ('ADA@example.com', 'Another')", "users_email_key"),
        ("insert into users (email, name) values ('', 'Nobody')", "users_email_check"),
        ("update products set stock = -1", "products_stock_not_negative"),
        ("update products set price_cents = -1", "products_price_cents_check"),
        (f"{ORDER} ('R-1', {USER}, 0, 'pending')", "orders_reference_key"),
        (f"{ORDER} ('R-2', 4711, 0, 'pending')", "orders_user_id_fkey"),
        (f"{ORDER} ('R-2', {USER}, 0, 'lost')", "orders_status_known"),
        (f"{ORDER} ('R-2', {USER}, -1, 'pending')", "orders_total_cents_check"),
        (f"{ORDER} ('R-2', {USER}, 0, 'paid')", "orders_status_has_its_time"),
        ("update orders set status = 'shipped', paid_at = now()", "orders_status_has_its_time"),
        ("update orders set status = 'cancelled'", "orders_status_has_its_time"),
        ("update orders set currency = 'dollars'", "orders_currency_check"),
        (f"{LINE} ({ID}, 1, 'TEA', 1, 1)", "order_lines_pkey"),
        (f"{LINE} (4711, 1, 'TEA', 1, 1)", "order_lines_order_id_fkey"),
        (f"{LINE} ({ID}, 2, 'TEA', 0, 1)", "order_lines_quantity_check"),
        (f"{LINE} ({ID}, 2, 'TEA', 1, -1)", "order_lines_amount_cents_check"),
        ("delete from users", "orders_user_id_fkey"),
        (
            "insert into daily_sales (day, orders, revenue_cents) values ('2021-03-01', -1, 0)",
            "daily_sales_orders_check",
        ),
    ],
)
async def test_the_database_refuses(session: AsyncSession, statement: str, constraint: str) -> None:
    await a_user(session)
    await a_product(session, stock=1)
    await an_order(session)
    with pytest.raises(IntegrityError, match=f'constraint "{constraint}"'):
        await session.execute(text(statement))


async def test_a_line_may_have_a_sku_of_no_product(session: AsyncSession) -> None:
    await a_user(session)
    await an_order(session, lines=(("NO SUCH", 1),))
