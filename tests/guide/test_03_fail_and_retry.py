"""Fail and retry: an error rolls everything back, is written down, and the job is tried again."""

import asyncio
from datetime import timedelta

import pytest
from arq import Retry
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from tests.guide.steps import add_user, commit, run_of, skip_waits
from worker.app import App
from worker.errors import Cancel, Permanent
from worker.handler import Handler
from worker.job import Job
from worker.models import Attempt
from worker.outcome import Cancelled, Dead, Retrying
from worker.retry import RetryPolicy
from worker.testing import drain


class Verify(Job, name="users.verify"):
    """Ask another service whether a user is who they say."""

    user_id: int


class Forged(Permanent):
    """The papers are no good, and won't get better."""


async def verify(job: Verify, session: AsyncSession) -> None:
    user = await session.get_one(User, job.user_id)
    user.name += " (verified)"
    await session.flush()
    match user.email:
        case "flaky@example.com":
            raise ConnectionError("the service is away")
        case "forger@example.com":
            raise Forged("the papers are no good")
        case "gone@example.com":
            raise Cancel("the user has left")
        case _:
            await asyncio.Event().wait()  # for ever


VERIFY = Handler(
    Verify,
    verify,
    retry=RetryPolicy(attempts=3, give_up_on=(NoResultFound,)),
    timeout=timedelta(milliseconds=500),
)
app = App(handlers=[VERIFY])


async def test_a_failure_leaves_nothing_but_its_record(engine: AsyncEngine) -> None:
    user_id = await add_user(engine, "flaky@example.com")
    job_id = await commit(engine, Verify(user_id=user_id))
    [(_, outcome)] = await drain(app, engine)
    assert isinstance(outcome, Retrying)
    assert outcome.error == "ConnectionError: the service is away"
    async with AsyncSession(engine) as session:
        assert (await session.get_one(User, user_id)).name == "Ada"
        [failure] = await session.scalars(select(Attempt).where(Attempt.id == job_id))
        assert "in verify" in failure.traceback


async def test_out_of_attempts_it_is_dead_and_kept(engine: AsyncEngine) -> None:
    job_id = await commit(engine, Verify(user_id=await add_user(engine, "flaky@example.com")))
    for _ in range(2):
        await drain(app, engine)
        await skip_waits(engine)
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Dead("ConnectionError: the service is away")
    run = await run_of(engine, job_id)
    assert (run.status, run.attempt) == ("dead", 3)
    assert b"users.verify" in (run.message or b"")  # the original bytes, for `worker replay`


def test_the_backoff_grows_and_is_drawn_below_its_bound() -> None:
    policy = RetryPolicy()
    assert [policy.bound(failure) for failure in (1, 2, 3, 4)] == [timedelta(seconds=s) for s in (1, 4, 16, 64)]
    assert policy.bound(100) == timedelta(hours=1)
    assert all(timedelta(0) <= policy.delay(4) <= policy.bound(4) for _ in range(100))


# --- what no retry can mend -------------------------------------------------------------------------------------------


async def test_a_permanent_error_is_dead_at_once(engine: AsyncEngine) -> None:
    await commit(engine, Verify(user_id=await add_user(engine, "forger@example.com")))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Dead("Forged: the papers are no good")


async def test_so_is_an_error_that_the_policy_gives_up_on(engine: AsyncEngine) -> None:
    await commit(engine, Verify(user_id=404))
    [(_, outcome)] = await drain(app, engine)
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("NoResultFound")


async def test_a_payload_that_does_not_fit_is_dead_at_once(engine: AsyncEngine) -> None:
    """Here SQL has sent it: a Python producer can't make such a job."""
    async with engine.begin() as connection:
        await connection.execute(text("""select worker.enqueue('users.verify', '{"user_id": "seven"}')"""))
    [(_, outcome)] = await drain(app, engine)
    assert isinstance(outcome, Dead)
    assert "user_id: Input should be a valid integer" in outcome.error


# --- not a failure ----------------------------------------------------------------------------------------------------


async def test_cancel_ends_a_job_that_is_not_needed_any_more(engine: AsyncEngine) -> None:
    await commit(engine, Verify(user_id=await add_user(engine, "gone@example.com")))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Cancelled("the user has left")


# --- two kinds of failure that look different -------------------------------------------------------------------------


async def test_a_timeout_is_a_failure_like_any_other(engine: AsyncEngine) -> None:
    await commit(engine, Verify(user_id=await add_user(engine, "slow@example.com")))
    [(_, outcome)] = await drain(app, engine)
    assert isinstance(outcome, Retrying)
    assert "ran longer than its timeout" in outcome.error


async def swallows(job: Verify, session: AsyncSession) -> str:
    try:
        await session.execute(text("select 1 / 0"))
    except DBAPIError:  # the transaction has failed: PostgreSQL will commit nothing of it
        return "all is well"
    return "never reached"


async def test_an_error_that_was_swallowed_is_a_failure_that_says_so(engine: AsyncEngine) -> None:
    await commit(engine, Verify(user_id=await add_user(engine)))
    [(_, outcome)] = await drain(App(handlers=[Handler(Verify, swallows)]), engine)
    assert isinstance(outcome, Retrying)
    assert "begin_nested()" in outcome.error


async def test_so_is_arqs_retry(engine: AsyncEngine) -> None:
    """Snooze is what burns no attempt."""

    async def asks_as_in_arq(job: Verify, session: AsyncSession) -> None:
        raise Retry(defer=3600)

    job_id = await commit(engine, Verify(user_id=7))
    [(_, outcome)] = await drain(App(handlers=[Handler(Verify, asks_as_in_arq)]), engine)
    assert isinstance(outcome, Retrying)
    assert outcome.delay <= timedelta(seconds=1)  # the policy's
    assert (await run_of(engine, job_id)).attempt == 1


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="a job needs at least 1"):
        RetryPolicy(attempts=0)
