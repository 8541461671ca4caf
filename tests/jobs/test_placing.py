import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.contracts import PlaceOrder
from jobs.orders.stock import OutOfStock, UnknownSku
from jobs.products.models import Product
from jobs.users.models import UnknownUser, User
from tests.jobs.shop import Shop, a_product, a_user, rows
from tests.support.waiting import wait_until
from worker.app import App
from worker.outcome import Dead
from worker.testing import perform

STOCK = "select sku, stock from products order by sku"


def order_of(*lines: tuple[str, int], reference: str = "R-1", email: str = "ada@example.com") -> PlaceOrder:
    return PlaceOrder(reference=reference, email=email, lines=list(lines))


async def test_place_prices_the_lines_and_takes_their_stock(app: App, session: AsyncSession) -> None:
    user = await a_user(session, "Ada@example.com")
    await a_product(session, "TEA", 250, stock=10)
    await a_product(session, "CUP", 1_000)
    result = await perform(app, order_of(("TEA", 2), ("CUP", 1), ("TEA", 3)), session)
    assert result["total_cents"] == 5 * 250 + 1_000
    placed = await rows(session, "select id, user_id, status, total_cents, currency, paid_at, imported_by from orders")
    assert placed == [(result["order_id"], user.id, "pending", 2_250, "USD", None, None)]
    lines = await rows(session, "select line_no, sku, quantity, amount_cents from order_lines order by line_no")
    assert lines == [(1, "TEA", 2, 500), (2, "CUP", 1, 1_000), (3, "TEA", 3, 750)]
    assert await rows(session, STOCK) == [("CUP", None), ("TEA", 5)]


async def test_place_of_the_same_reference_again_changes_nothing(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session, stock=2)
    first = await perform(app, order_of(("TEA", 2)), session)
    again = await perform(app, order_of(("TEA", 1), ("NO SUCH", 1), email="nobody@example.com"), session)
    assert again == first
    assert await rows(session, STOCK) == [("TEA", 0)]
    assert len(await rows(session, "select * from order_lines")) == 1


async def test_place_needs_a_user_and_names_no_address(app: App, session: AsyncSession) -> None:
    await a_product(session)
    with pytest.raises(UnknownUser, match="'R-1'") as caught:
        await perform(app, order_of(("TEA", 1)), session)
    assert "example.com" not in str(caught.value)


async def test_place_needs_its_products(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session)
    with pytest.raises(UnknownSku, match="'CUP'"):
        await perform(app, order_of(("TEA", 1), ("CUP", 1)), session)


async def test_place_needs_stock_over_all_lines_of_a_product(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session, stock=3)
    with pytest.raises(OutOfStock, match="4 of 'TEA' are wanted and 3 are left"):
        await perform(app, order_of(("TEA", 2), ("TEA", 2)), session)


async def test_place_that_is_dead_leaves_nothing(shop: Shop) -> None:
    await shop.add(User(email="ada@example.com", name="Ada"), Product(sku="TEA", name="Tea", price_cents=1, stock=1))
    outcome = await shop.outcome(order_of(("TEA", 2)))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("OutOfStock: ")
    assert await shop.rows("select * from orders") == []
    assert await shop.rows(STOCK) == [("TEA", 1)]


async def place(shop: Shop, job: PlaceOrder) -> Any:
    async with AsyncSession(shop.engine) as session, session.begin():
        return await perform(shop.app, job, session)


async def while_the_first_is_open(shop: Shop, first: PlaceOrder, second: PlaceOrder) -> tuple[Any, Any]:
    """The results of two jobs: the second comes to wait for the first, which then commits."""

    async def second_waits() -> bool:
        waits = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return bool(await shop.rows(waits))

    async with AsyncSession(shop.engine) as session, session.begin():
        result = await perform(shop.app, first, session)
        await session.flush()
        waiting = asyncio.create_task(place(shop, second))
        await wait_until(second_waits)
    return result, (await asyncio.gather(waiting, return_exceptions=True))[0]


async def test_of_two_that_want_the_last_piece_one_gets_it(shop: Shop) -> None:
    await shop.add(User(email="ada@example.com", name="Ada"), Product(sku="TEA", name="Tea", price_cents=1, stock=1))
    won, lost = await while_the_first_is_open(shop, order_of(("TEA", 1)), order_of(("TEA", 1), reference="R-2"))
    assert won["total_cents"] == 1
    assert isinstance(lost, OutOfStock)
    assert await shop.rows("select reference from orders") == [("R-1",)]
    assert await shop.rows(STOCK) == [("TEA", 0)]


async def test_of_two_with_one_reference_the_second_finds_the_first(shop: Shop) -> None:
    await shop.add(User(email="ada@example.com", name="Ada"), Product(sku="TEA", name="Tea", price_cents=1, stock=1))
    first, second = await while_the_first_is_open(shop, order_of(("TEA", 1)), order_of(("TEA", 1)))
    assert second == first
    assert await shop.rows(STOCK) == [("TEA", 0)]


async def test_an_untracked_product_makes_nobody_wait(shop: Shop) -> None:
    await shop.add(User(email="ada@example.com", name="Ada"), Product(sku="TEA", name="Tea", price_cents=1, stock=None))
    async with AsyncSession(shop.engine) as session, session.begin():
        await perform(shop.app, order_of(("TEA", 1)), session)
        await session.flush()
        async with AsyncSession(shop.engine) as other, other.begin():
            await other.execute(text("set local lock_timeout = '1s'"))
            await perform(shop.app, order_of(("TEA", 1), reference="R-2"), other)
    assert len(await shop.rows("select * from orders")) == 2
