"""Handle: a plain async function, in one transaction that the runtime commits."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from jobs.users.models import User
from tests.guide.steps import add_user, commit, run_of, skip_waits
from worker.app import App
from worker.database import create_engine
from worker.dev import EmbeddedPostgres
from worker.handler import AnyHandler, Handler
from worker.job import Job
from worker.models import Run
from worker.outbox import enqueue
from worker.outcome import Completed, Retrying
from worker.overview import details
from worker.run import current_run
from worker.testing import drain, enqueued


class Rename(Job, name="users.rename"):
    """Give a user another name, and tell them."""

    user_id: int
    to: str


class TellRenamed(Job, name="users.tell_renamed"):
    """Write to a user whose name was changed."""

    user_id: int
    before: str


async def rename(job: Rename, session: AsyncSession) -> dict[str, str]:
    user = await session.get_one(User, job.user_id, with_for_update=True)
    before, user.name = user.name, job.to
    enqueue(session, TellRenamed(user_id=user.id, before=before))
    return {"before": before}


async def test_work_result_and_follow_up_commit_together(engine: AsyncEngine) -> None:
    app = App(handlers=[Handler(Rename, rename)])
    user_id = await add_user(engine)
    job_id = await commit(engine, Rename(user_id=user_id, to="Ada Lovelace"))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed({"before": "Ada"})
    async with AsyncSession(engine) as session:
        assert (await session.get_one(User, user_id)).name == "Ada Lovelace"
        assert await enqueued(session, TellRenamed) == [TellRenamed(user_id=user_id, before="Ada")]
    run = await run_of(engine, job_id)
    assert (run.status, run.result) == ("completed", {"before": "Ada"})


# --- what became of it ------------------------------------------------------------------------------------------------


async def tell_about(job_id: str, session: AsyncSession) -> dict[str, object] | None:
    """What a route of a web application answers to somebody who asks again and again; None: no such job."""
    found = await details(await session.connection(), job_id)
    if found is None:
        return None
    entry = found.entry
    return {"status": entry.status, "done": entry.done, "of": entry.total, "result": found.result}


async def test_what_became_of_a_job_can_be_asked_from_its_commit_on(
    engine: AsyncEngine, server: EmbeddedPostgres
) -> None:
    tables = "worker.run, worker.outbox, worker.attempt, worker.reject"
    rights = f"grant usage on schema worker to asking; grant select on {tables} to asking"
    server.psql("create role asking login", rights, database="app")
    app = App(handlers=[Handler(Rename, rename)])
    job_id = await commit(engine, Rename(user_id=await add_user(engine), to="Ada Lovelace"))
    asking = create_engine(server.database_url("app").replace("postgres@", "asking@"), pool_size=1)
    async with AsyncSession(asking) as session:
        assert await tell_about(job_id, session) == {"status": "waiting", "done": 0, "of": None, "result": None}
    await drain(app, engine)
    async with AsyncSession(asking) as session:
        told = {"status": "completed", "done": 0, "of": None, "result": {"before": "Ada"}}
        assert await tell_about(job_id, session) == told
        assert await tell_about("nobody's", session) is None
    await asking.dispose()


# --- what reaches outside the database --------------------------------------------------------------------------------


class Mailer(Protocol):
    """A gateway: what a handler needs beside its session."""

    async def send(self, to: str, text: str, *, idempotency_key: str) -> None: ...


async def tell_renamed(job: TellRenamed, session: AsyncSession, *, mailer: Mailer) -> None:
    user = await session.get_one(User, job.user_id)
    letter = f"You were {job.before} and are now {user.name}."
    await mailer.send(user.email, letter, idempotency_key=current_run().idempotency_key)


def handlers(mailer: Mailer) -> tuple[AnyHandler, ...]:
    return (
        Handler(Rename, rename),
        Handler(TellRenamed, partial(tell_renamed, mailer=mailer)),
    )


class Postbox:
    """A mail service that knows a letter by its key, and whose first answer is lost."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}
        self.calls = 0
        self.is_connected = False

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        self.is_connected = True
        yield
        self.is_connected = False

    async def send(self, to: str, text: str, *, idempotency_key: str) -> None:
        assert self.is_connected
        self.calls += 1
        self.letters[idempotency_key] = f"{to}: {text}"
        if self.calls == 1:
            raise ConnectionResetError


def application(mailer: Postbox) -> App:
    return App(handlers=handlers(mailer), lifespan=mailer.connected)


async def test_a_side_effect_may_come_twice_but_always_with_one_key(engine: AsyncEngine) -> None:
    postbox = Postbox()
    app = application(postbox)
    await commit(engine, Rename(user_id=await add_user(engine), to="Ada Lovelace"))
    async with app.lifespan():
        [*_, (_, outcome)] = await drain(app, engine)
        assert isinstance(outcome, Retrying)
        await skip_waits(engine)
        [(_, outcome)] = await drain(app, engine)
    assert isinstance(outcome, Completed)
    assert postbox.calls == 2
    assert list(postbox.letters.values()) == ["ada@example.com: You were Ada and are now Ada Lovelace."]


async def test_two_jobs_of_one_key_are_two_letters(engine: AsyncEngine) -> None:
    """They have one id, and the mail service must not take the second for the first that comes again."""
    postbox = Postbox()
    app = application(postbox)
    user_id = await add_user(engine)
    for before in ("Augusta", "Countess"):
        async with AsyncSession(engine) as session, session.begin():
            enqueue(session, TellRenamed(user_id=user_id, before=before), key=f"renamed-{user_id}")
        async with app.lifespan():
            while await drain(app, engine):
                await skip_waits(engine)
    assert postbox.calls == 3  # the first answer was lost
    assert sorted(postbox.letters.values()) == [
        "ada@example.com: You were Augusta and are now Ada.",
        "ada@example.com: You were Countess and are now Ada.",
    ]


# --- the session is the runtime's -------------------------------------------------------------------------------------


async def add_or_find(job: Rename, session: AsyncSession) -> str:
    try:
        async with session.begin_nested():  # what fails in here fails alone
            session.add(User(email="ada@example.com", name=job.to))
    except IntegrityError:
        return "found"
    return "added"


async def test_begin_nested_is_the_handlers_own(engine: AsyncEngine) -> None:
    app = App(handlers=[Handler(Rename, add_or_find)])
    await commit(engine, Rename(user_id=await add_user(engine), to="Another"))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed("found")


async def commits_by_itself(job: Rename, session: AsyncSession) -> None:
    (await session.get_one(User, job.user_id)).name = job.to
    await session.commit()


async def shares_its_session(job: Rename, session: AsyncSession) -> None:
    await asyncio.gather(session.get_one(User, job.user_id), session.execute(text("select 1")))


async def test_what_a_handler_may_not_do_is_refused_with_a_sentence(engine: AsyncEngine) -> None:
    user_id = await add_user(engine)
    for handler, sentence in (
        (commits_by_itself, "A handler called commit() on its session, which the runtime owns"),
        (shares_its_session, "A handler used its session from a second task"),
    ):
        job_id = await commit(engine, Rename(user_id=user_id, to="Nobody"))
        await drain(App(handlers=[Handler(Rename, handler)]), engine)
        assert sentence in str((await run_of(engine, job_id)).error)
    async with AsyncSession(engine) as session:
        assert (await session.get_one(User, user_id)).name == "Ada"


@pytest.mark.parametrize(("once", "on_commit"), [(True, set[str]()), (False, {"before_commit", "after_commit"})])
async def test_listeners_on_session_hear_all_but_the_commit(
    engine: AsyncEngine, *, once: bool, on_commit: set[str]
) -> None:
    user_id = await add_user(engine)
    await commit(engine, Rename(user_id=user_id, to="Ay"))
    app = App(handlers=[Handler(Rename, rename, once=once)])
    heard = set[str]()
    of_work = ("before_flush", "after_flush", "do_orm_execute")
    with ExitStack() as stack:
        for name in (*of_work, "before_commit", "after_commit"):

            def listener(*_arguments: Any, name: str = name) -> None:
                heard.add(name)

            event.listen(Session, name, listener)
            stack.callback(event.remove, Session, name, listener)
        [(_, outcome), *_] = await drain(app, engine)
    assert isinstance(outcome, Completed)
    assert heard == {*of_work, *on_commit}


async def test_a_read_only_transaction_can_not_be_marked_done(engine: AsyncEngine) -> None:
    async def only_reads(job: Rename, session: AsyncSession) -> None:
        await session.execute(text("set transaction read only"))

    job_id = await commit(engine, Rename(user_id=await add_user(engine), to="Ay"))
    app = App(handlers=[Handler(Rename, only_reads)])
    for _ in range(5):
        await drain(app, engine)
        await skip_waits(engine)
    assert (await run_of(engine, job_id)).status == "dead"


# --- without a run ----------------------------------------------------------------------------------------------------


class WarmCache(Job, name="cache.warm"):
    """Read what is asked for often. Twice does no harm."""


async def warm_cache(job: WarmCache, session: AsyncSession) -> None:
    """Nothing is asked of PostgreSQL unless this function asks."""


async def test_once_false_keeps_no_run_of_a_success(engine: AsyncEngine) -> None:
    app = App(handlers=[Handler(WarmCache, warm_cache, once=False)])
    await commit(engine, WarmCache())
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed()
    async with AsyncSession(engine) as session:
        assert await session.scalar(select(func.count()).select_from(Run)) == 0
