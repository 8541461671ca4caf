from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.batches import pay_orders, ship_orders
from jobs.orders.bulk import cancel_stale
from jobs.orders.contracts import CancelOrder, CancelStale, PayOrder, PayOrderBatched, SetStatus, ShipOrder
from jobs.orders.models import Order, WrongState
from tests.jobs.shop import LONG_AGO, Shop, a_product, a_user, an_order, rows
from worker.app import App
from worker.chunk import Chunk
from worker.outcome import Completed, Dead
from worker.testing import enqueued, perform

STATES: dict[str, dict[str, Any]] = {
    "pending": {"status": "pending"},
    "paid": {"status": "paid", "paid_at": LONG_AGO},
    "shipped": {"status": "shipped", "paid_at": LONG_AGO, "shipped_at": LONG_AGO},
    "cancelled": {"status": "cancelled", "cancelled_at": LONG_AGO},
}


async def stock(session: AsyncSession) -> dict[str, int]:
    return dict(await rows(session, "select sku, stock from products"))


async def test_pay_enqueues_the_shipping_in_its_transaction(app: App, session: AsyncSession) -> None:
    await a_user(session)
    order = await an_order(session, lines=(("TEA", 3),))
    assert await perform(app, PayOrder(order_id=order.id), session) == {"order_id": order.id, "total_cents": 300}
    assert await enqueued(session, ShipOrder) == [ShipOrder(order_id=order.id)]
    assert await rows(session, "select status, paid_at is null from orders") == [("paid", False)]


async def test_ship_tells_the_server_s_time(app: App, session: AsyncSession) -> None:
    await a_user(session)
    order = await an_order(session, **STATES["paid"])
    result = await perform(app, ShipOrder(order_id=order.id), session)
    assert result["order_id"] == order.id
    shipped = await rows(session, "select status, shipped_at, updated_at = shipped_at from orders")
    assert shipped == [("shipped", datetime.fromisoformat(result["shipped_at"]), True)]


async def test_many_orders_are_paid_with_one_update_and_their_shipping_is_enqueued(
    app: App, session: AsyncSession
) -> None:
    await a_user(session)
    orders = [await an_order(session, f"R-{n}", lines=(("TEA", n),)) for n in range(1, 4)]
    other = await an_order(session, "R-other")
    ids = [order.id for order in reversed(orders)]
    results = await pay_orders([PayOrderBatched(order_id=each) for each in ids], session)
    assert results == [
        {"order_id": each, "total_cents": cents} for each, cents in zip(ids, (300, 200, 100), strict=True)
    ]
    assert await enqueued(session, ShipOrder) == [ShipOrder(order_id=each) for each in ids]
    moved = await rows(session, "select id, status, paid_at = now() and updated_at = now() from orders order by id")
    assert moved == [*((order.id, "paid", True) for order in orders), (other.id, "pending", None)]
    result = await perform(app, PayOrderBatched(order_id=other.id), session)
    assert result == {"order_id": other.id, "total_cents": 200}


async def test_many_orders_are_shipped_with_one_update(session: AsyncSession) -> None:
    await a_user(session)
    orders = [await an_order(session, f"R-{n}", **STATES["paid"]) for n in range(3)]
    results = await ship_orders([ShipOrder(order_id=order.id) for order in orders], session)
    ((now,),) = await rows(session, "select now()")
    assert results == [{"order_id": order.id, "shipped_at": now} for order in orders]
    assert await rows(session, "select distinct status, shipped_at from orders") == [("shipped", now)]


async def test_of_two_jobs_about_one_order_the_second_is_refused(session: AsyncSession) -> None:
    await a_user(session)
    order = await an_order(session)
    with pytest.raises(WrongState, match=f"^Order {order.id} is paid; only one that is pending can become paid"):
        await pay_orders([PayOrderBatched(order_id=order.id)] * 2, session)


async def test_the_bad_orders_of_a_batch_are_dead_and_the_others_are_shipped(shop: Shop) -> None:
    async with AsyncSession(shop.engine) as session, session.begin():
        await a_user(session)
        good = [(await an_order(session, f"R-{n}", **STATES["paid"])).id for n in range(6)]
        bad = [(await an_order(session, f"R-{state}", **STATES[state])).id for state in ("pending", "shipped")]
    jobs = [ShipOrder(order_id=each) for each in (*good[:3], *bad, 4711, *good[3:], good[0])]
    outcomes = await shop.together(jobs)
    assert [type(outcome) for outcome in outcomes] == [*[Completed] * 3, *[Dead] * 3, *[Completed] * 3, Dead]
    told = [outcome.error.partition(":")[0] for outcome in outcomes if isinstance(outcome, Dead)]
    assert told == ["WrongState", "WrongState", "NoResultFound", "WrongState"]
    shipped = await shop.rows("select id from orders where status = 'shipped' and shipped_at = updated_at order by id")
    assert shipped == [(each,) for each in good]
    assert await shop.rows("select status, count(*) from worker.run group by status order by 1") == [
        ("completed", 6),
        ("dead", 4),
    ]


@pytest.mark.parametrize("state", ["pending", "paid"])
async def test_cancel_keeps_the_reason_and_gives_the_stock_back(app: App, session: AsyncSession, state: str) -> None:
    await a_user(session)
    await a_product(session, "TEA", stock=1)
    await a_product(session, "CUP")
    order = await an_order(session, lines=(("TEA", 3), ("CUP", 1), ("TEA", 2)), **STATES[state])
    result = await perform(app, CancelOrder(order_id=order.id, reason="changed my mind"), session)
    assert result == {"order_id": order.id}
    cancelled = await rows(session, "select status, cancel_reason, cancelled_at is null from orders")
    assert cancelled == [("cancelled", "changed my mind", False)]
    assert await stock(session) == {"TEA": 6, "CUP": None}


async def test_cancel_of_an_imported_order_gives_nothing_back(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session, stock=1)
    order = await an_order(session, imported_by="a run", **STATES["paid"])
    await perform(app, CancelOrder(order_id=order.id), session)
    assert await stock(session) == {"TEA": 1}


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        (PayOrder, ["paid", "shipped", "cancelled"]),
        (PayOrderBatched, ["paid", "shipped", "cancelled"]),
        (ShipOrder, ["pending", "shipped", "cancelled"]),
        (CancelOrder, ["shipped", "cancelled"]),
    ],
)
async def test_illegal_moves_are_refused(
    app: App, session: AsyncSession, kind: type[PayOrder | PayOrderBatched | ShipOrder | CancelOrder], states: list[str]
) -> None:
    await a_user(session)
    for state in states:
        order = await an_order(session, f"R-{state}", **STATES[state])
        with pytest.raises(WrongState, match=f"^Order {order.id} is {state}; only one that is "):
            await perform(app, kind(order_id=order.id), session)


async def test_wrong_state_is_dead_and_changes_nothing(shop: Shop) -> None:
    async with AsyncSession(shop.engine) as session, session.begin():
        await a_user(session)
        order_id = (await an_order(session, **STATES["shipped"])).id
    outcome = await shop.outcome(CancelOrder(order_id=order_id))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith(f"WrongState: Order {order_id} is shipped")
    assert await shop.rows("select status from orders") == [("shipped",)]


@pytest.mark.parametrize("kind", [PayOrder, PayOrderBatched, ShipOrder, CancelOrder])
async def test_an_order_that_is_not_there_is_dead_at_once(
    shop: Shop, kind: type[PayOrder | PayOrderBatched | ShipOrder | CancelOrder]
) -> None:
    outcome = await shop.outcome(kind(order_id=4711))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("NoResultFound: ")


async def test_set_status_moves_what_may_move_and_gives_stock_back(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session, stock=0)
    orders = {state: await an_order(session, f"R-{state}", **fields) for state, fields in STATES.items()}
    second = await an_order(session, "R-second")
    changes = [
        (orders["pending"].id, "paid"),
        (orders["paid"].id, "cancelled"),
        (orders["shipped"].id, "cancelled"),  # illegal
        (orders["cancelled"].id, "paid"),  # illegal
        (10**15, "paid"),  # unknown
        (second.id, "cancelled"),  # another change of the same order follows
        (second.id, "paid"),
    ]
    job = SetStatus.model_validate({"changes": changes})
    assert await perform(app, job, session) == {"updated": 3, "skipped": 4}
    moved = (
        "select reference, status, paid_at is null, shipped_at is null, cancelled_at is null from orders order by id"
    )
    assert await rows(session, moved) == [
        ("R-pending", "paid", False, True, True),
        ("R-paid", "cancelled", False, True, False),
        ("R-shipped", "shipped", False, False, True),
        ("R-cancelled", "cancelled", True, True, False),
        ("R-second", "paid", False, True, True),
    ]
    assert await stock(session) == {"TEA": 2}


async def test_set_status_ships(app: App, session: AsyncSession) -> None:
    await a_user(session)
    order = await an_order(session, **STATES["paid"])
    assert await perform(app, SetStatus(changes=[(order.id, "shipped")]), session) == {"updated": 1, "skipped": 0}
    assert await rows(session, "select status, shipped_at is null from orders") == [("shipped", False)]


async def test_cancel_stale_cancels_pending_ones_alone(app: App, session: AsyncSession) -> None:
    await a_user(session)
    await a_product(session, stock=0)
    now = datetime.now(UTC)
    await an_order(session, "R-fresh", placed_at=now - timedelta(days=2))
    await an_order(session, "R-stale", placed_at=now - timedelta(days=4))
    await an_order(session, "R-paid", placed_at=LONG_AGO, **STATES["paid"])
    assert await perform(app, CancelStale(older_than=timedelta(days=3)), session) == {"cancelled": 1}
    cancelled = await rows(session, "select reference, cancel_reason from orders where status = 'cancelled'")
    assert cancelled == [("R-stale", "stale")]
    assert await stock(session) == {"TEA": 2}


async def test_cancel_stale_goes_on_behind_its_cursor(session: AsyncSession) -> None:
    await a_user(session)
    ids = [(await an_order(session, f"R-{number}", placed_at=LONG_AGO)).id for number in range(3)]
    job = CancelStale(older_than=timedelta(days=3))
    first = await cancel_stale(job, session, Chunk(None, 2))
    assert (first.cursor, first.done) == (ids[1], 2)
    second = await cancel_stale(job, session, Chunk(first.cursor, 2))
    assert (second.cursor, second.counts) == (ids[2], {"cancelled": 1})
    assert (await cancel_stale(job, session, Chunk(second.cursor, 2))).cursor is None


def test_moves_are_the_model_s_own() -> None:
    order = Order(id=7, status="pending")
    order.pay()
    order.ship()
    with pytest.raises(WrongState, match=r"^Order 7 is shipped; only one that is pending or paid can become cancelled"):
        order.cancel("too late")
