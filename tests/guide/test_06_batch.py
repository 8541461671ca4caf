"""Batch: many jobs of one name in one call and one transaction. What fails is halved until the bad jobs stand alone."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from tests.guide.steps import add_user, commit, run_of
from worker.app import App
from worker.errors import Permanent
from worker.handler import BatchHandler
from worker.job import Job
from worker.outcome import Completed
from worker.run import current_runs
from worker.testing import drain


class Greet(Job, name="users.greet"):
    """Greet one user."""

    user_id: int


class NoSuchUser(Permanent):
    """Nobody has this id."""


async def greet(jobs: Sequence[Greet], session: AsyncSession) -> list[dict[str, str]]:
    """One statement, however many users there are."""
    found = await session.execute(select(User.id, User.name).where(User.id.in_([job.user_id for job in jobs])))
    names = dict(found.all())
    missing = [job.user_id for job in jobs if job.user_id not in names]
    if missing:
        raise NoSuchUser(f"There is no user {missing[0]}.")
    return [{"greeting": f"Hello {names[job.user_id]}"} for job in jobs]


app = App(handlers=[BatchHandler(Greet, greet, max_size=500, linger=timedelta(milliseconds=20))])


async def test_many_jobs_one_call_and_a_result_for_each(engine: AsyncEngine) -> None:
    sizes: list[int] = []

    async def counting(jobs: Sequence[Greet], session: AsyncSession) -> list[dict[str, str]]:
        sizes.append(len(jobs))
        return await greet(jobs, session)

    for name in ("Ada", "Grace", "Mary"):
        await commit(engine, Greet(user_id=await add_user(engine, f"{name}@example.com", name)))
    outcomes = await drain(App(handlers=[BatchHandler(Greet, counting)]), engine)
    assert sizes == [3]
    assert [outcome for _, outcome in outcomes] == [
        Completed({"greeting": f"Hello {name}"}) for name in ("Ada", "Grace", "Mary")
    ]


async def test_a_bad_job_comes_to_stand_alone_and_the_others_commit(engine: AsyncEngine) -> None:
    users = [await add_user(engine, f"{n}@example.com") for n in range(3)]
    ids = [await commit(engine, Greet(user_id=user_id)) for user_id in (*users[:2], 4711, users[2])]
    # fmt: off
    outcomes = await drain(app, engine)

    told = [type(outcome).__name__ for _, outcome in outcomes]
    assert told == ["Completed", "Completed", "Dead", "Completed"]
    # fmt: on
    run = await run_of(engine, ids[2])
    assert (run.status, run.attempt, run.error) == ("dead", 1, "NoSuchUser: There is no user 4711.")


class Mailer(Protocol):
    """A mail service that knows a letter by its key."""

    async def send_all(self, letters: Mapping[str, str]) -> None: ...


async def send_greetings(jobs: Sequence[Greet], session: AsyncSession, *, mailer: Mailer) -> None:
    letters = {run.idempotency_key: f"Dear user {job.user_id}" for run, job in zip(current_runs(), jobs, strict=True)}
    await mailer.send_all(letters)  # by idempotency key


async def test_each_job_has_its_own_idempotency_key(engine: AsyncEngine) -> None:
    sent: dict[str, str] = {}

    class Postbox:
        async def send_all(self, letters: Mapping[str, str]) -> None:
            sent.update(letters)

    ids = [await commit(engine, Greet(user_id=user_id)) for user_id in (1, 2)]
    await drain(App(handlers=[BatchHandler(Greet, partial(send_greetings, mailer=Postbox()))]), engine)
    assert {key.partition(":")[0]: letter for key, letter in sent.items()} == {
        ids[0]: "Dear user 1",
        ids[1]: "Dear user 2",
    }
