"""A job's session is made when its handler first asks something of it, whatever that is."""

from operator import attrgetter
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.runtime.bench import Bench, Note, effect
from worker.guard import GuardedSession
from worker.handler import Handler
from worker.lazy_session import LazySession
from worker.outcome import Completed


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions of kept jobs, as they are made."""
    sessions: list[Session] = []
    init = GuardedSession.__init__

    def noted(session: GuardedSession, *args: Any, **given: Any) -> None:
        sessions.append(session)
        init(session, *args, **given)

    monkeypatch.setattr(GuardedSession, "__init__", noted)
    return sessions


async def silent(job: Note, session: AsyncSession) -> None:
    del job, session


async def noting(job: Note, session: AsyncSession) -> None:
    await effect(session, job.text)
    await effect(session, job.text)


async def test_a_job_that_asks_nothing_of_it_has_none_and_one_that_does_has_one(
    bench: Bench, made: list[Session]
) -> None:
    assert await bench.run(Handler(Note, silent), bench.direct(Note())) == Completed(None)
    assert made == []
    assert await bench.run(Handler(Note, noting), bench.direct(Note(text="a"))) == Completed(None)
    assert len(made) == 1
    assert await bench.effects() == ["a", "a"]


@pytest.mark.parametrize("asked", [attrgetter("info"), attrgetter("sync_session"), attrgetter("new"), list])
async def test_whatever_is_asked_first_makes_it(bench: Bench, made: list[Session], asked: Any) -> None:
    async with bench.engine.connect() as connection:
        session = LazySession(GuardedSession, bind=connection)
        assert not session.in_transaction()
        assert made == []
        asked(session)
        assert len(made) == 1


async def test_what_a_session_hasnt_got_is_missing_here_too(bench: Bench) -> None:
    async with bench.engine.connect() as connection:
        session: Any = LazySession(GuardedSession, bind=connection)
        for _ in range(2):
            with pytest.raises(AttributeError, match="no_such_thing"):
                session.no_such_thing()
