from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.models import Order
from jobs.users.contracts import CreateUser, DeactivateDormant, SetActive, UserStatement
from jobs.users.handlers import deactivate_dormant
from jobs.users.models import EmailTaken, UnknownUser, User
from tests.jobs.shop import LONG_AGO, Shop, a_user, an_order, rows
from worker.app import App
from worker.chunk import Chunk
from worker.outcome import Dead
from worker.testing import perform


async def test_create_gives_the_id_and_the_server_fills_in_the_rest(app: App, session: AsyncSession) -> None:
    result = await perform(app, CreateUser(email="Ada@example.com", name="Ada"), session)
    user = await session.get_one(User, result["user_id"])
    await session.refresh(user)  # what the server filled in
    assert (user.email, user.name, user.is_active, user.last_seen_at) == ("Ada@example.com", "Ada", True, None)
    assert user.created_at.tzinfo is not None


async def test_create_of_a_taken_email_names_the_owner_and_no_address(app: App, session: AsyncSession) -> None:
    owner = await a_user(session, "ada@example.com")
    with pytest.raises(EmailTaken, match=f"user {owner.id} ") as caught:
        await perform(app, CreateUser(email="ADA@example.com", name="Another"), session)
    assert "example.com" not in str(caught.value)
    assert await rows(session, "select name from users") == [("Ada",)]  # the savepoint kept the transaction alive


async def test_create_of_a_taken_email_is_dead(shop: Shop) -> None:
    await shop.add(User(email="ada@example.com", name="Ada"))
    outcome = await shop.outcome(CreateUser(email="ada@example.com", name="Another"))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("EmailTaken: ")


async def test_set_active_updates_all_at_once_and_counts_those_that_exist(app: App, session: AsyncSession) -> None:
    users = [await a_user(session, f"user{number}@example.com") for number in range(3)]
    ids = [users[0].id, users[2].id, 10**15]
    assert await perform(app, SetActive(user_ids=ids, active=False), session) == {"updated": 2}
    assert await rows(session, "select is_active from users order by id") == [(False,), (True,), (False,)]


async def test_set_active_takes_more_ids_than_a_statement_has_parameters(app: App, session: AsyncSession) -> None:
    ids = [*range(10**9, 10**9 + 40_000), (await a_user(session)).id]
    assert await perform(app, SetActive(user_ids=ids, active=False), session) == {"updated": 1}


async def test_deactivate_dormant_leaves_alone_who_was_never_seen_or_lately(app: App, session: AsyncSession) -> None:
    now = datetime.now(UTC)
    await a_user(session, "never@example.com")
    await a_user(session, "lately@example.com", last_seen_at=now - timedelta(days=9))
    await a_user(session, "dormant@example.com", last_seen_at=now - timedelta(days=11))
    await a_user(session, "gone@example.com", last_seen_at=LONG_AGO, is_active=False)
    job = DeactivateDormant(dormant_for=timedelta(days=10))
    assert await perform(app, job, session) == {"deactivated": 1}
    active = await rows(session, "select email from users where is_active order by id")
    assert active == [("never@example.com",), ("lately@example.com",)]


async def test_deactivate_dormant_goes_on_behind_its_cursor(session: AsyncSession) -> None:
    ids = [(await a_user(session, f"user{number}@example.com", last_seen_at=LONG_AGO)).id for number in range(3)]
    job = DeactivateDormant(dormant_for=timedelta(days=10))
    first = await deactivate_dormant(job, session, Chunk(None, 2))
    assert (first.cursor, first.done) == (ids[1], 2)
    second = await deactivate_dormant(job, session, Chunk(first.cursor, 2))
    assert (second.cursor, second.counts) == (ids[2], {"deactivated": 1})
    assert (await deactivate_dormant(job, session, Chunk(second.cursor, 2))).cursor is None


async def test_statement_tells_what_was_bought(app: App, session: AsyncSession) -> None:
    user = await a_user(session)
    later = LONG_AGO + timedelta(days=1)
    await an_order(session, "R-2", (("TEA", 3),), placed_at=later, status="shipped", paid_at=later, shipped_at=later)
    await an_order(session, "R-1", (("TEA", 2), ("CUP", 1)), placed_at=LONG_AGO, status="paid", paid_at=later)
    await an_order(session, "R-3")
    await an_order(session, "R-4", status="cancelled", cancelled_at=later)
    session.expunge_all()
    assert await perform(app, UserStatement(user_id=user.id), session) == {
        "orders": 2,
        "spent_cents": 600,
        "first_order": "2021-01-01T12:00:00Z",
        "last_order": "2021-01-02T12:00:00Z",
    }


async def test_statement_of_a_user_without_orders(app: App, session: AsyncSession) -> None:
    result = await perform(app, UserStatement(user_id=(await a_user(session)).id), session)
    assert result == {"orders": 0, "spent_cents": 0, "first_order": None, "last_order": None}


async def test_statement_of_nobody_is_refused(app: App, session: AsyncSession) -> None:
    with pytest.raises(UnknownUser, match="no user 4711"):
        await perform(app, UserStatement(user_id=4711), session)


async def test_what_was_not_loaded_eagerly_is_an_error(session: AsyncSession) -> None:
    user_id, order_id = (await a_user(session)).id, (await an_order(session)).id
    session.expunge_all()
    user, order = await session.get_one(User, user_id), await session.get_one(Order, order_id)
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = user.orders
    with pytest.raises(InvalidRequestError, match="lazy='raise'"):
        _ = order.lines
