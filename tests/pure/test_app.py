"""An app is checked when it is made."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from worker.app import App
from worker.handler import Handler
from worker.job import Job
from worker.schedule import Cron


def test_its_migrations_are_folders(tmp_path: Path) -> None:
    assert App(handlers=(), migrations=(tmp_path,)).migrations == (tmp_path,)


@pytest.mark.parametrize("given", ["library/migrations", Path("library/migrations")])
def test_migrations_that_lack_their_comma_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"The app has migrations=.*; give a tuple of folders"):
        App(handlers=(), migrations=given)


def test_migrations_that_arent_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The app has its migrations in '.*/nowhere', which is no folder"):
        App(handlers=(), migrations=(tmp_path / "nowhere",))


@pytest.mark.parametrize("entry", [(1, "* * * * *"), "* * * * *"])
def test_what_is_no_cron_entry_is_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match=r"The app has .* in its schedule; give each entry as Cron\(job, crontab\)"):
        App(handlers=(), schedule=[entry])


class Report(Job, name="report"):
    pass


async def report(job: Report, session: AsyncSession) -> None:
    pass


def test_handlers_and_schedules_that_lack_their_comma_are_refused() -> None:
    handler: Any = Handler(Report, report)
    entry: Any = Cron(Report(), "0 6 * * *")
    with pytest.raises(ValueError, match=r"The app has handlers=Handler\(.*; give a tuple of them"):
        App(handlers=handler)
    with pytest.raises(ValueError, match=r"The app has schedule=Cron\(.*; give a tuple of them"):
        App(handlers=(handler,), schedule=entry)


# --- what an app opens ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def opens(*_given: object) -> AsyncGenerator[None]:
    yield


@asynccontextmanager
async def takes_the_app(app: object) -> AsyncGenerator[None]:
    """As FastAPI's do."""
    yield


@asynccontextmanager
async def has_a_default(app: object = None) -> AsyncGenerator[None]:
    yield


class Pool:
    """Something that has to be opened."""

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None]:
        yield

    @asynccontextmanager
    async def connected_to(self, _host: str) -> AsyncGenerator[None]:
        yield


async def gives_none() -> None: ...


@pytest.mark.parametrize(
    ("lifespan", "sentence"),
    [
        (opens(), r"which has been called already; give the function itself"),
        (Pool().connected(), r"which has been called already"),
        (takes_the_app, r"can't be called with nothing: missing a required argument: 'app'; let it take nothing"),
        (Pool.connected, r"missing a required argument: 'self'"),
        (Pool().connected_to, r"missing a required argument: '_host'"),
        (gives_none, r"give a function that returns an async context manager"),
        (None, r"give a function that returns an async context manager"),
    ],
)
def test_a_lifespan_that_cant_be_opened_is_refused_before_a_worker_starts(lifespan: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"The app has lifespan=.*{sentence}"):
        App(handlers=(), lifespan=lifespan)


def test_a_lifespan_may_be_whatever_can_be_called_with_nothing() -> None:
    @wraps(takes_the_app)
    def gives_the_app() -> AbstractAsyncContextManager[None]:
        return takes_the_app(None)

    for lifespan in (opens, has_a_default, nullcontext, Pool().connected, partial(takes_the_app, None), gives_the_app):
        assert App(handlers=(), lifespan=lifespan).lifespan == lifespan
