"""Test your job: perform one, see what it enqueued, run it all. No Redis, no worker, no sleep."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import pytest
from pydantic import PlainSerializer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.app import app
from jobs.orders.contracts import PayOrder, ShipOrder
from jobs.orders.models import Order, WrongState
from jobs.users.contracts import CreateUser
from jobs.users.models import EmailTaken, User
from tests.guide.steps import add_user, commit
from worker.app import App
from worker.chunk import Chunk, Step
from worker.errors import Permanent, SessionMisuse, SwallowedError, TransactionEnded, UnknownJob
from worker.handler import ChunkedHandler, Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.outcome import Completed, Dead
from worker.testing import drain, enqueued, perform

# --- one handler, in a transaction that is rolled back ----------------------------------------------------------------


async def test_paying_an_order_has_it_shipped(session: AsyncSession) -> None:
    order = Order(reference="R-1", user_id=await create_ada(session), total_cents=250)
    session.add(order)
    await session.flush()

    result = await perform(app, PayOrder(order_id=order.id), session)

    assert result == {"order_id": order.id, "total_cents": 250}
    assert order.status == "paid"
    assert await enqueued(session, ShipOrder) == [ShipOrder(order_id=order.id)]


async def test_what_the_handler_raises_is_raised(session: AsyncSession) -> None:
    order = Order(reference="R-1", user_id=await create_ada(session), total_cents=250)
    session.add(order)
    await session.flush()
    await perform(app, PayOrder(order_id=order.id), session)
    with pytest.raises(WrongState, match="only one that is pending can become paid"):
        await perform(app, PayOrder(order_id=order.id), session)


async def create_ada(session: AsyncSession) -> int:
    result: dict[str, int] = await perform(app, CreateUser(email="ada@example.com", name="Ada"), session)
    return result["user_id"]


# --- through the real executor, where jobs commit ---------------------------------------------------------------------


async def test_a_taken_address_is_dead(engine: AsyncEngine) -> None:
    ada = await add_user(engine, "ada@example.com")
    await commit(engine, CreateUser(email="ADA@example.com", name="Another"))

    [(_, outcome)] = await drain(app, engine)

    assert isinstance(outcome, Dead)
    assert outcome.error == f"EmailTaken: {EmailTaken(ada)}"


async def test_drain_runs_what_the_jobs_enqueue_too(engine: AsyncEngine) -> None:
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        order = Order(reference="R-1", user_id=await add_user(engine), total_cents=250)
        session.add(order)
    await commit(engine, PayOrder(order_id=order.id))

    outcomes = await drain(app, engine)

    assert [message.name for message, _ in outcomes] == ["orders.pay", "orders.ship"]
    assert all(isinstance(outcome, Completed) for _, outcome in outcomes)


# --- what perform looks after -----------------------------------------------------------------------------------------


class Lossy(Job, name="lossy"):
    """A field that comes back from JSON as something else."""

    when: Annotated[datetime, PlainSerializer(lambda when: when.date().isoformat())]


async def lossy(job: Lossy, session: AsyncSession) -> None: ...


async def test_a_payload_that_changes_on_its_way_is_found(session: AsyncSession) -> None:
    with pytest.raises(AssertionError, match="changes on its way through JSON"):
        await perform(App(handlers=[Handler(Lossy, lossy)]), Lossy(when=datetime(2026, 1, 2, 3, 4)), session)  # noqa: DTZ001 - a plain value is enough


async def commits(job: Lossy, session: AsyncSession) -> None:
    await session.commit()


async def test_a_handler_that_commits_is_found(session: AsyncSession) -> None:
    with pytest.raises(RuntimeError, match=r"called commit\(\)"):
        await perform(App(handlers=[Handler(Lossy, commits)]), Lossy(when=datetime(2026, 1, 2)), session)  # noqa: DTZ001 - as above


async def gathers(job: Lossy, session: AsyncSession) -> None:
    await asyncio.gather(session.execute(text("select 1")), session.execute(text("select 2")))


async def commits_as_sql(job: Lossy, session: AsyncSession) -> None:
    await session.execute(text("commit"))


async def commits_its_connection(job: Lossy, session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def swallows(job: Lossy, session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await session.execute(text("select 1 / 0"))


@pytest.mark.parametrize(
    ("handler", "refusal"),
    [
        (gathers, SessionMisuse),
        (commits_as_sql, TransactionEnded),
        (commits_its_connection, TransactionEnded),
        (swallows, SwallowedError),
    ],
)
async def test_what_a_worker_refuses_is_refused_here(
    handler: Callable[[Lossy, AsyncSession], Awaitable[None]], refusal: type[Exception], session: AsyncSession
) -> None:
    shop = App(handlers=[Handler(Lossy, handler)])
    with pytest.raises(refusal):
        await perform(shop, Lossy(when=datetime(2026, 1, 2)), session)  # noqa: DTZ001 - as above


async def test_the_test_goes_on_in_its_session_afterwards(session: AsyncSession) -> None:
    await perform(App(handlers=[Handler(Lossy, lossy)]), Lossy(when=datetime(2026, 1, 2)), session)  # noqa: DTZ001 - as above
    asked = asyncio.create_task(session.execute(text("select 1")))
    assert (await asked).scalar_one() == 1


async def test_what_production_would_fail_at_fails_here(engine: AsyncEngine) -> None:
    """What a handler leaves in its session is written, too, and what it enqueues is seen without autoflush."""

    class Register(Job, name="register"):
        email: str

    async def register(job: Register, session: AsyncSession) -> None:
        session.add(User(email=job.email, name="A"))

    shop = App(handlers=[Handler(Register, register)])
    async with AsyncSession(engine, autoflush=False) as session:
        enqueue(session, Register(email="a@example.org"))
        assert await enqueued(session, Register) == [Register(email="a@example.org")]
        await perform(shop, Register(email="a@example.org"), session)
        with pytest.raises(IntegrityError):
            await perform(shop, Register(email="a@example.org"), session)


async def test_a_cursor_that_stands_still_ends_the_test_too(session: AsyncSession) -> None:
    class Walk(Job, name="walk"): ...

    async def stand(job: Walk, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(1)

    with pytest.raises(Permanent, match="returned the cursor that it was given"):
        await perform(App(handlers=[ChunkedHandler(Walk, stand, cursor=int)]), Walk(), session)


async def test_a_job_that_the_app_does_not_know_is_told_by_its_name(session: AsyncSession) -> None:
    class Stranger(Job, name="stranger"): ...

    with pytest.raises(UnknownJob, match="No handler is bound to the job 'stranger'"):
        await perform(app, Stranger(), session)
