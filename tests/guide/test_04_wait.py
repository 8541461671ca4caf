"""Wait: later, not yet, once, and only the newest."""

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from tests.guide.steps import add_user, commit, run_of, skip_waits
from worker.app import App
from worker.errors import Snooze
from worker.handler import Handler
from worker.job import Job
from worker.limits import Rate
from worker.outbox import enqueue
from worker.outcome import Completed, Duplicate, Snoozed
from worker.testing import drain, enqueued


class Remind(Job, name="users.remind"):
    """Remind a user of what they left in the basket."""

    user_id: int
    items: int = 1


async def remind(job: Remind, session: AsyncSession) -> int:
    user = await session.get_one(User, job.user_id)
    if user.last_seen_at and user.last_seen_at > datetime.now(UTC) - timedelta(minutes=30):
        raise Snooze(timedelta(minutes=30), "the user is here")
    return job.items


app = App(handlers=[Handler(Remind, remind)])
REMIND = Handler(Remind, remind, max_concurrent=4, rate=Rate(100, per=timedelta(minutes=1)))


# --- one after another ------------------------------------------------------------------------------------------------


async def test_the_kit_knows_no_limits(engine: AsyncEngine) -> None:
    """They are the workers': tests/limits/ shows them."""
    user_id = await add_user(engine, "ada@example.com")
    for _ in range(5):
        await commit(engine, Remind(user_id=user_id))
    outcomes = await drain(App(handlers=[REMIND]), engine)
    assert [outcome for _, outcome in outcomes] == [Completed(1)] * 5


# --- later ------------------------------------------------------------------------------------------------------------


def remind_later(session: AsyncSession, user_id: int) -> None:
    enqueue(session, Remind(user_id=user_id), delay=timedelta(hours=2))
    enqueue(session, Remind(user_id=user_id), at=datetime(2030, 1, 31, 9, tzinfo=UTC))


async def test_a_job_waits_for_its_time(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    async with AsyncSession(engine) as session, session.begin():
        remind_later(session, user_id)
    assert await drain(app, engine) == []
    await skip_waits(engine)
    assert [outcome for _, outcome in await drain(app, engine)] == [Completed(1), Completed(1)]


# --- not yet ----------------------------------------------------------------------------------------------------------


async def test_a_snooze_waits_without_burning_an_attempt(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    await see(engine, user_id, datetime.now(UTC))
    job_id = await commit(engine, Remind(user_id=user_id))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Snoozed(timedelta(minutes=30))
    run = await run_of(engine, job_id)
    assert (run.status, run.attempt) == ("snoozed", 0)

    await see(engine, user_id, datetime.now(UTC) - timedelta(days=1))
    await skip_waits(engine)
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed(1)


# --- once -------------------------------------------------------------------------------------------------------------


async def on_payment(session: AsyncSession, event_id: str, user_id: int) -> None:
    """A web hook, which its sender may deliver again and again."""
    enqueue(session, Remind(user_id=user_id), job_id=f"remind-after-payment-{event_id}")


async def test_a_job_id_is_applied_once(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    for outcome in (Completed(1), Duplicate(1), Duplicate(1)):
        async with AsyncSession(engine) as session, session.begin():
            await on_payment(session, "evt_1", user_id)
        assert [found for _, found in await drain(app, engine)] == [outcome]


# --- only the newest --------------------------------------------------------------------------------------------------


async def on_basket_change(session: AsyncSession, user_id: int, items: int) -> None:
    """However often the basket changes in two hours: one letter, about the last state."""
    enqueue(session, Remind(user_id=user_id, items=items), key=f"basket-{user_id}", delay=timedelta(hours=2))


async def test_jobs_of_one_key_coalesce_while_they_wait(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    for items in (1, 2, 3):
        async with AsyncSession(engine) as session, session.begin():
            await on_basket_change(session, user_id, items)
    await skip_waits(engine)
    assert [outcome for _, outcome in await drain(app, engine)] == [Completed(3)]


async def test_what_changes_after_the_run_runs_again(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    for items in (1, 2):
        async with AsyncSession(engine) as session, session.begin():
            await on_basket_change(session, user_id, items)
        await skip_waits(engine)
        assert [outcome for _, outcome in await drain(app, engine)] == [Completed(items)]
    async with AsyncSession(engine) as session:
        assert await enqueued(session, Remind) == []


async def see(engine: AsyncEngine, user_id: int, moment: datetime) -> None:
    async with AsyncSession(engine) as session, session.begin():
        (await session.get_one(User, user_id)).last_seen_at = moment
