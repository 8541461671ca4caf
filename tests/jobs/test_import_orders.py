import asyncio
import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.app import handlers
from jobs.csv_input import Position
from jobs.files import Files
from jobs.orders.contracts import MAX_LINES, CancelOrder, ImportOrders, PayOrder, PlaceOrder, ShipOrder
from tests.jobs.shop import LONG_AGO, Shop, a_product, a_user, an_order, rows
from tests.support.waiting import wait_until
from worker.app import App
from worker.handler import ChunkedHandler
from worker.outbox import enqueue
from worker.outcome import Completed, Snoozed
from worker.testing import drain, perform

HEADER = "reference,email,placed_at,sku,quantity,amount\n"
ORDERS = "select reference, status, total_cents from orders order by reference"
LINES = """
select reference, line_no, sku, quantity, amount_cents from order_lines join orders on id = order_id order by 1, 2
"""


def line(reference: str = "R-1", email: str = "ada@example.com", **fields: str) -> str:
    values = {"placed_at": "2021-03-01T10:00:00Z", "sku": "TEA", "quantity": "1", "amount": "1.00", **fields}
    return f"{reference},{email},{','.join(values.values())}\n"


def put(folder: Path, *lines: str) -> ImportOrders:
    (folder / "orders.csv").write_text(HEADER + "".join(lines))
    return ImportOrders(path="orders.csv")


def rejects(folder: Path, result: dict[str, Any]) -> list[tuple[int, str]]:
    """Line and reason of each."""
    with (folder / result["rejects_path"]).open(newline="") as file:
        return [(int(row["line"]), row["reason"]) for row in csv.DictReader(file)]


def counts(result: dict[str, Any]) -> tuple[int, int, int, int]:
    return result["read"], result["inserted"], result["updated"], result["rejected"]


@pytest.fixture(params=[1, 2, 100])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> App:
    """The domain, with so many rows a chunk of orders.import: what it does is the same for all of them."""
    table = App(handlers=handlers(Files(tmp_path))).handlers
    found = table["orders.import"]
    assert isinstance(found, ChunkedHandler)
    resized = ChunkedHandler(ImportOrders, found.run, cursor=Position, size=request.param)
    return App(handlers=[*(handler for name, handler in table.items() if name != "orders.import"), resized])


@pytest.fixture
async def session(session: AsyncSession) -> AsyncSession:
    """With one user in it."""
    await a_user(session, "Ada@example.com")
    return session


async def test_adjacent_rows_of_one_reference_are_one_paid_order(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    job = put(
        tmp_path,
        line("R-1", sku="TEA", quantity="2", amount="5.01"),
        line("R-1", "ADA@EXAMPLE.COM", sku="CUP", amount="0"),
        line("R-1", sku="TEA", amount="2.5"),
        line("R-2", placed_at="2021-03-02T01:30:00+02:00", amount="999999999.99"),
    )
    result = await perform(app, job, session)
    assert result == {"read": 4, "inserted": 4, "updated": 0, "rejected": 0, "rejects_path": None}
    assert await rows(session, ORDERS) == [("R-1", "paid", 751), ("R-2", "paid", 99_999_999_999)]
    assert await rows(session, LINES) == [
        ("R-1", 1, "TEA", 2, 501),
        ("R-1", 2, "CUP", 1, 0),
        ("R-1", 3, "TEA", 1, 250),
        ("R-2", 1, "TEA", 1, 99_999_999_999),
    ]
    times = await rows(session, "select placed_at, paid_at from orders order by reference")
    assert times == [
        (datetime(2021, 3, 1, 10, tzinfo=UTC),) * 2,
        (datetime(2021, 3, 1, 23, 30, tzinfo=UTC),) * 2,
    ]


async def test_a_reference_seen_before_replaces_its_lines(app: App, tmp_path: Path, session: AsyncSession) -> None:
    await perform(app, put(tmp_path, line("R-1"), line("R-1"), line("R-2")), session)
    result = await perform(app, put(tmp_path, line("R-1", sku="CUP", amount="7"), line("R-3")), session)
    assert counts(result) == (2, 1, 1, 0)
    assert await rows(session, ORDERS) == [("R-1", "paid", 700), ("R-2", "paid", 100), ("R-3", "paid", 100)]
    assert (await rows(session, LINES))[0] == ("R-1", 1, "CUP", 1, 700)
    assert len(await rows(session, LINES)) == 3


async def test_an_order_that_was_there_becomes_paid_unless_it_went_further(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    await an_order(session, "R-1")
    await an_order(session, "R-2", status="shipped", paid_at=LONG_AGO, shipped_at=LONG_AGO)
    await an_order(session, "R-3", status="cancelled", cancelled_at=LONG_AGO)
    await perform(app, put(tmp_path, line("R-1"), line("R-2"), line("R-3")), session)
    assert await rows(session, ORDERS) == [("R-1", "paid", 100), ("R-2", "shipped", 100), ("R-3", "cancelled", 100)]


async def test_a_stray_row_of_an_earlier_reference_is_a_reject(app: App, tmp_path: Path, session: AsyncSession) -> None:
    job = put(tmp_path, line("R-1"), line("R-2"), line("R-1", sku="STRAY"), line("R-3"), line("R-2", sku="STRAY"))
    result = await perform(app, job, session)
    assert counts(result) == (5, 3, 0, 2)
    stray = "has a reference that stood earlier in the file, with another between"
    assert rejects(tmp_path, result) == [(4, stray), (6, stray)]
    assert [sku for _, _, sku, _, _ in await rows(session, LINES)] == ["TEA"] * 3


async def test_rows_of_an_order_that_is_too_much_for_one_chunk_are_rejects(
    app: App, tmp_path: Path, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_CHUNK_BYTES", 300)
    wide = line("R-1", sku=" " * 350 + "CUP")
    result = await perform(app, put(tmp_path, line("R-1"), wide, wide, wide, line("R-1"), line("R-2")), session)
    assert counts(result) == (6, 4, 0, 2)
    too_far = "is too far behind the first row of its order"
    assert rejects(tmp_path, result) == [(5, too_far), (6, too_far)]
    assert [reference for reference, *_ in await rows(session, LINES)] == ["R-1"] * 3 + ["R-2"]


async def test_a_reference_all_of_whose_rows_were_bad_is_not_there_yet(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    result = await perform(app, put(tmp_path, line("R-1", amount="?"), line("R-2"), line("R-1")), session)
    assert counts(result) == (3, 2, 0, 1)


async def test_bad_rows_are_rejected_and_the_rest_of_their_order_goes_in(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    await a_user(session, "bob@example.com")
    job = put(
        tmp_path,
        line("R-1"),
        line("R-1", "nobody@example.com"),
        line("R-1", "bob@example.com"),
        line("R-1", amount="much"),
        "R-1,ada@example.com,2021-03-01,TEA,1,1,000.00\n",
        line("R-1", amount="2.00"),
        line("R-2"),
    )
    result = await perform(app, job, session)
    assert counts(result) == (7, 3, 0, 4)
    assert rejects(tmp_path, result) == [
        (3, "has the e-mail address of no user"),
        (4, "is of another user than the first row of its order"),
        (5, "has an amount that is no number with at most two decimals: 'much'"),
        (6, "has 7 fields where 6 are expected"),
    ]
    assert await rows(session, ORDERS) == [("R-1", "paid", 300), ("R-2", "paid", 100)]


async def test_an_order_has_so_many_lines_and_no_more(app: App, tmp_path: Path, session: AsyncSession) -> None:
    result = await perform(app, put(tmp_path, *[line("R-1")] * (MAX_LINES + 1)), session)
    assert counts(result) == (MAX_LINES + 1, MAX_LINES, 0, 1)
    assert rejects(tmp_path, result) == [(MAX_LINES + 2, "is beyond the 1,000 lines that an order may have")]


async def test_imported_lines_take_no_stock_and_those_they_replace_give_it_back(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    await a_product(session, stock=10)
    placed = PlaceOrder(reference="R-1", email="ada@example.com", lines=[("TEA", 4)])
    order_id = (await perform(app, placed, session))["order_id"]
    await perform(app, put(tmp_path, line("R-1", quantity="3"), line("R-2", quantity="9")), session)
    stock = "select stock from products"
    assert await rows(session, stock) == [(10,)]
    await perform(app, put(tmp_path, line("R-1", quantity="2")), session)
    session.expunge_all()
    await perform(app, CancelOrder(order_id=order_id), session)
    assert await rows(session, stock) == [(10,)]


async def test_an_import_gives_back_nothing_of_what_has_been_shipped_or_was_given_back(
    app: App, tmp_path: Path, session: AsyncSession
) -> None:
    await a_product(session, stock=10)
    for reference in ("R-1", "R-2"):
        placed = PlaceOrder(reference=reference, email="ada@example.com", lines=[("TEA", 4)])
        order_id = (await perform(app, placed, session))["order_id"]
        if reference == "R-1":
            await perform(app, PayOrder(order_id=order_id), session)
            await perform(app, ShipOrder(order_id=order_id), session)
        else:
            await perform(app, CancelOrder(order_id=order_id), session)
    await perform(app, put(tmp_path, line("R-1"), line("R-2")), session)
    assert await rows(session, "select stock from products") == [(6,)]


async def test_an_order_that_is_placed_while_its_reference_is_imported_is_waited_for(
    app: App, tmp_path: Path, shop: Shop
) -> None:
    """Else nobody would give back what it took from the stock."""
    async with AsyncSession(shop.engine) as session, session.begin():
        await a_user(session)
        await a_product(session, stock=10)
    async with AsyncSession(shop.engine) as placing:
        await perform(app, PlaceOrder(reference="R-1", email="ada@example.com", lines=[("TEA", 2)]), placing)
        importing = asyncio.create_task(shop.together([put(tmp_path, line("R-1"))]))

        async def is_waiting() -> bool:
            return bool(await shop.rows("select 1 from pg_locks where not granted"))

        await wait_until(is_waiting)
        await placing.commit()
    assert await importing == [Snoozed(timedelta(seconds=1))]
    assert await shop.rows("select stock from products") == [(8,)]
    assert await shop.rows("select status from orders") == [("pending",)]


async def test_a_chosen_job_id_whose_run_was_pruned_is_another_import(app: App, tmp_path: Path, shop: Shop) -> None:
    """Which updates what the first has stored, and rejects no row of it as one that stood earlier in the file."""
    async with AsyncSession(shop.engine) as session, session.begin():
        await a_user(session)
    for amount in ("1.00", "2.00"):
        job = put(tmp_path, line("R-1", amount=amount), line("R-2"), line("R-1", sku="STRAY"))
        async with AsyncSession(shop.engine) as session, session.begin():
            await session.execute(text("delete from worker.run"))  # as worker.prune does
            enqueue(session, job, job_id="orders-of-the-month")
        outcomes = [outcome for _, outcome in await drain(shop.app, shop.engine)]
        assert isinstance(outcomes[-1], Completed)
        assert isinstance(outcomes[-1].result, dict)
        assert counts(outcomes[-1].result)[3] == 1
    assert await shop.rows(ORDERS) == [("R-1", "paid", 200), ("R-2", "paid", 100)]
