"""Schedule: a cron entry is a job and its times."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.guide.steps import commit
from worker import prune
from worker.app import App
from worker.handler import Handler
from worker.job import Job
from worker.outcome import Completed
from worker.schedule import Cron
from worker.testing import drain


class Report(Job, name="sales.report"):
    """Write the report of a day."""

    region: str = "all"


async def report(job: Report, session: AsyncSession) -> None: ...


app = App(
    handlers=[Handler(Report, report)],
    schedule=[
        Cron(Report(), "0 6 * * 1-5"),
        Cron(Report(region="jp"), "30 9 * * *", name="report-jp", tz="Asia/Tokyo", grace=timedelta(hours=6)),
    ],
)


def ticks(cron: Cron, after: datetime, count: int) -> list[datetime]:
    return list(islice(cron.ticks_after(after), count))


FRIDAY = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_the_times_are_those_of_a_crontab_line() -> None:
    weekdays, _ = app.schedule
    assert ticks(weekdays, FRIDAY, 2) == [datetime(2026, 1, 5, 6, tzinfo=UTC), datetime(2026, 1, 6, 6, tzinfo=UTC)]


def test_a_time_zone_is_its_own() -> None:
    _, tokyo = app.schedule
    assert ticks(tokyo, FRIDAY, 1) == [datetime(2026, 1, 3, 0, 30, tzinfo=UTC)]


def test_a_missed_tick_is_made_up_for_within_the_grace() -> None:
    """After a night without workers the newest tick runs, once, if it isn't older than the grace."""
    weekdays, tokyo = app.schedule
    monday = datetime(2026, 1, 5, 7, 30, tzinfo=UTC)
    assert weekdays.newest_tick(after=FRIDAY, until=monday) is None  # 90 minutes late, and the grace is an hour
    assert tokyo.newest_tick(after=FRIDAY, until=datetime(2026, 1, 5, 6, tzinfo=UTC)) == datetime(
        2026, 1, 5, 0, 30, tzinfo=UTC
    )


def test_what_can_not_work_is_refused_when_the_app_is_made() -> None:
    with pytest.raises(ValueError, match="has the crontab"):
        Cron(Report(), "every day")
    with pytest.raises(ValueError, match="use an IANA name"):
        Cron(Report(), "0 6 * * *", tz="Tokyo")
    with pytest.raises(ValueError, match="give one of them a name of its own"):
        App(handlers=[Handler(Report, report)], schedule=[Cron(Report(), "0 6 * * *"), Cron(Report(), "0 7 * * *")])
    with pytest.raises(ValueError, match="has no handler"):
        App(handlers=[], schedule=[Cron(Report(), "0 6 * * *")])


# --- old runs ---------------------------------------------------------------------------------------------------------


pruned = App(
    handlers=[Handler(Report, report), *prune.handlers()],
    schedule=[Cron(prune.Prune(), "30 4 * * *")],
)


async def test_old_runs_go(engine: AsyncEngine) -> None:
    old = await commit(engine, Report())
    await drain(pruned, engine)
    async with engine.begin() as connection:
        await connection.execute(text("update worker.run set finished_at = now() - interval '31 days'"))
    young = await commit(engine, Report())
    cleaning = await commit(engine, prune.Prune())
    [_, (_, outcome)] = await drain(pruned, engine)
    assert outcome == Completed({"pruned": 1})
    async with engine.connect() as connection:
        kept = set((await connection.execute(text("select id from worker.run"))).scalars())
    assert kept == {young, cleaning}
    assert old not in kept
