"""An app is checked when it is made."""

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
