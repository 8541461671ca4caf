"""The schedule at work: each tick once over all workers, in one transaction with its note."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from tests.outbox.hands import Hands, Play
from tests.support.reading import blocks_read, noted
from tests.support.waiting import wait_until
from worker import brief, outbox, ticker
from worker.availability import Availability
from worker.dev import EmbeddedPostgres
from worker.job import Job
from worker.reporting.observer import Observers
from worker.reporting.trace import CRON_HEADER
from worker.schedule import Cron
from worker.shield import cancel_all
from worker.ticker import Ticker
from worker.wire import Message, decode

EVERY_SECOND, NEVER = "* * * * * *", "0 0 1 1 *"


class Renamed(Job, name="test.renamed", aliases=("test.play",)):
    """What Play is called after a deploy."""


class Faults(Observers):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[BaseException] = []

    def fault(self, part: str, error: BaseException) -> None:  # noqa: ARG002 - the observer's signature
        self.seen.append(error)


def ticker_of(hands: Hands, *schedule: Cron, observer: Observers | None = None) -> Ticker:
    return Ticker(hands.engine, schedule, Availability(hands.engine), observer or Observers())


def every_minute(**options: Any) -> Cron:
    return Cron(Play(text="tick"), "* * * * *", **options)


async def last_tick(hands: Hands, ago: str, name: str = "test.play") -> None:
    """As if the schedule had been looked at last so long ago."""
    await hands.sql(
        "insert into worker.cron_tick (name, scheduled_at) values (:name, now() - cast(:ago as text)::interval)",
        name=name,
        ago=ago,
    )


async def ticks(hands: Hands) -> list[Any]:
    return list(await hands.sql("select * from worker.cron_tick order by scheduled_at"))


@asynccontextmanager
async def running(*tickers: Ticker) -> AsyncGenerator[None]:
    tasks = [asyncio.create_task(each.run()) for each in tickers]
    try:
        yield
    finally:
        await cancel_all(tasks)


async def test_a_tick_is_enqueued_in_one_transaction_with_its_note(hands: Hands) -> None:
    await last_tick(hands, "2 min")
    cron = every_minute()
    wait = await ticker_of(hands, cron).tick(cron)
    [_, tick], [row] = await ticks(hands), await hands.rows("*, xmin")
    [noted] = await hands.sql("select xmin from worker.cron_tick where job_id is not null")
    assert (tick.job_id, noted.xmin) == (row.id, row.xmin)
    assert tick.scheduled_at.second == 0
    assert timedelta(0) < wait <= timedelta(minutes=1)


async def test_a_tick_runs_like_any_other_job_and_names_its_entry(hands: Hands) -> None:
    await last_tick(hands, "2 min", name="nightly")
    cron = every_minute(name="nightly")
    await ticker_of(hands, cron).tick(cron)
    [row] = await hands.rows()
    message = decode(row.message)
    assert isinstance(message, Message)
    assert message.headers[CRON_HEADER] == "nightly"
    await hands.work()
    assert await hands.applied() == ["tick"]


async def test_the_first_deploy_runs_none_of_the_past(hands: Hands) -> None:
    cron = every_minute()
    await ticker_of(hands, cron).tick(cron)
    [passed_over] = await ticks(hands)
    assert passed_over.job_id is None
    assert await hands.rows() == []


async def test_of_the_ticks_missed_within_the_grace_the_newest_runs_once(hands: Hands) -> None:
    await last_tick(hands, "30 min")
    cron = every_minute()
    for _ in range(3):
        await ticker_of(hands, cron).tick(cron)
    [[now]] = await hands.sql("select now()")
    newest = [tick.scheduled_at for tick in await ticks(hands) if tick.job_id]
    assert now.replace(second=0, microsecond=0) in newest
    assert len(newest) == len(await hands.rows()) <= 2  # the minute may end in between


async def test_a_tick_missed_for_longer_than_its_grace_is_not_made_up_for(hands: Hands) -> None:
    await last_tick(hands, "400 days")
    cron = Cron(Play(), NEVER, grace=timedelta(0))
    await ticker_of(hands, cron).tick(cron)
    assert await hands.rows() == []


async def test_a_tick_is_enqueued_once_over_all_workers(hands: Hands) -> None:
    await last_tick(hands, "2 min")
    cron = Cron(Play(text="tick"), "0 * * * *", grace=timedelta(days=1))
    await hands.sql("update worker.cron_tick set scheduled_at = now() - interval '3 hours'")
    workers = [ticker_of(hands, cron) for _ in range(8)]
    await asyncio.gather(*(worker.tick(cron) for worker in workers))
    assert len(await hands.rows()) == 1


async def test_running_schedules_enqueue_each_second_s_tick_once(hands: Hands) -> None:
    cron = Cron(Play(text="tick"), EVERY_SECOND)

    async def two_ticks_are_enqueued() -> bool:
        return len(await hands.rows("id")) >= 2

    async with running(*(ticker_of(hands, cron) for _ in range(3))):
        await wait_until(two_ticks_are_enqueued)
    enqueued = [tick for tick in await ticks(hands) if tick.job_id]
    assert len(enqueued) == len(await hands.rows("id")) == len({tick.scheduled_at for tick in enqueued})


async def test_an_entry_that_ticks_each_second_has_no_others_looked_at(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is a transaction: of thousands of entries all ticks of that one but the newest were missed."""
    monkeypatch.setattr(ticker, "LOOK_AT_LEAST_EVERY", timedelta(hours=1))
    looked: list[str] = []

    class Looking(Ticker):
        async def tick(self, cron: Cron) -> timedelta:
            looked.append(cron.name)
            return await super().tick(cron)

    schedule = [Cron(Play(), NEVER, name="rare"), Cron(Play(), EVERY_SECOND, name="often")]

    async def the_frequent_one_was_looked_at_often() -> bool:
        return looked.count("often") >= 4

    async with running(Looking(hands.engine, schedule, Availability(hands.engine), Observers())):
        await wait_until(the_frequent_one_was_looked_at_often)
    assert looked.count("rare") == 1


async def test_a_look_reads_the_last_tick_and_not_all_that_there_were(hands: Hands) -> None:
    await hands.sql(
        "insert into worker.cron_tick (name, scheduled_at) select 'test.play', now() - make_interval(secs => n)"
        " from generate_series(1, 20000) as n"
    )
    with noted(hands.engine) as sent:
        await ticker_of(hands).tick(Cron(Play(), NEVER))
    assert await blocks_read(hands.engine, *sent) < 50


async def test_who_was_stopped_before_its_note_enqueues_nothing_after_a_later_tick(hands: Hands) -> None:
    """It slept through its own tick, and another worker has gone on to a newer one."""
    await last_tick(hands, "10 min")
    cron = every_minute()
    async with hands.engine.begin() as connection:
        now = (await connection.execute(text("select now()"))).scalar_one()
        await ticker_of(hands, cron).tick(cron)
        await ticker._enqueue(connection, cron, now - timedelta(minutes=5))
    assert len(await hands.rows()) == 1


async def test_a_tick_is_enqueued_once_while_a_deploy_renames_its_job(hands: Hands) -> None:
    """Old workers keep the entry under the old name, new ones under the new; either may be the first at a tick."""
    old, new = Cron(Play(), "0 * * * *", grace=timedelta(days=1)), Cron(Renamed(), "0 * * * *", grace=timedelta(days=1))
    await last_tick(hands, "3 hours")
    for first, second in ((new, old), (old, new)):
        await ticker_of(hands, first).tick(first)
        await ticker_of(hands, second).tick(second)
        assert [row.name for row in await hands.rows()] == [first.job.job_name]
        await hands.sql("delete from worker.outbox")
        await hands.sql("update worker.cron_tick set scheduled_at = scheduled_at - interval '3 hours'")


async def test_a_tick_that_another_notes_under_the_old_name_meanwhile_is_enqueued_by_nobody_else(hands: Hands) -> None:
    await last_tick(hands, "3 hours")
    cron = Cron(Renamed(), "0 * * * *", grace=timedelta(days=1))
    [[now]] = await hands.sql("select date_trunc('hour', now())")
    async with hands.engine.connect() as theirs, hands.engine.begin() as ours:
        await ticker._note(theirs, Cron(Play(), "0 * * * *"), now, "its job")
        enqueuing = asyncio.create_task(ticker._enqueue(ours, cron, now))

        async def it_waits() -> bool:
            [[waiting]] = await hands.sql("select count(*) from pg_locks where not granted")
            return bool(waiting)

        await wait_until(it_waits)
        await theirs.commit()
        await enqueuing
    assert await hands.rows() == []
    assert len(await ticks(hands)) == 3


async def test_a_tick_missed_while_a_deploy_renames_its_job_is_made_up_for(hands: Hands) -> None:
    await last_tick(hands, "2 hours")
    cron = Cron(Renamed(), "0 * * * *")
    await ticker_of(hands, cron).tick(cron)
    assert [row.name for row in await hands.rows()] == ["test.renamed"]


async def test_now_is_postgresql_s_clock(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own clock is never asked."""
    cron = every_minute()
    monkeypatch.setattr(ticker, "datetime", None)
    await last_tick(hands, "2 min")
    await ticker_of(hands, cron).tick(cron)
    [[now]] = await hands.sql("select now()")
    assert now - (await ticks(hands))[-1].scheduled_at < timedelta(minutes=2)


async def test_a_tick_s_job_has_the_tick_s_time_though_the_worker_s_clock_is_behind(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    await last_tick(hands, "2 min")
    cron = every_minute()
    monkeypatch.setattr(outbox, "time", SimpleNamespace(time_ns=lambda: 0))
    await ticker_of(hands, cron).tick(cron)
    [row], [_, tick] = await hands.rows(), await ticks(hands)
    message = decode(row.message)
    assert isinstance(message, Message)
    assert message.from_outbox
    assert {row.enqueued_ms, message.enqueued_ms} == {tick.scheduled_at.timestamp() * 1000}
    await hands.work()
    [run] = await hands.runs()
    assert (run.enqueued_ms, run.status) == (row.enqueued_ms, "completed")
    assert await hands.rows() == []


async def test_a_clock_that_was_set_back_enqueues_nothing_twice(hands: Hands) -> None:
    await last_tick(hands, "-1 hour")
    cron = every_minute()
    wait = await ticker_of(hands, cron).tick(cron)
    assert await hands.rows() == []
    assert wait > timedelta(0)


async def test_one_entry_s_trouble_is_no_other_s(hands: Hands) -> None:
    class Broken(Cron):
        def newest_tick(self, after: datetime, until: datetime) -> datetime | None:  # noqa: ARG002 - Cron's
            raise RuntimeError("broken")

    faults = Faults()
    broken, sound = Broken(Play(), EVERY_SECOND, name="a"), Cron(Play(), EVERY_SECOND, name="b")
    await last_tick(hands, "1 min", name="a")
    await last_tick(hands, "1 min", name="b")

    async def the_sound_one_is_enqueued() -> bool:
        return bool(await hands.rows("id"))

    async with running(ticker_of(hands, broken, sound, observer=faults)):
        await wait_until(the_sound_one_is_enqueued)
    assert [type(error) for error in faults.seen[:1]] == [RuntimeError]


async def test_a_worker_stopped_in_its_tick_holds_up_no_other(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    cron = Cron(Play(), "0 * * * *", grace=timedelta(days=1))
    await last_tick(hands, "3 hours")
    [[now]] = await hands.sql("select date_trunc('hour', now())")
    stopped = brief.brief_transaction(hands.engine)
    with monkeypatch.context() as patch:  # of this one alone: the other may be slow
        patch.setattr(brief, "IDLE_LIMIT_MS", 500)
        connection = await stopped.__aenter__()
    await ticker._note(connection, cron, now, "its job")
    await ticker_of(hands, cron).tick(cron)
    with pytest.raises(Exception, match="connection"):
        await stopped.__aexit__(None, None, None)
    [row] = await hands.rows()
    assert [tick.job_id for tick in await ticks(hands)] == [None, row.id]


async def test_the_schedule_outlives_postgresql_s_absence(hands: Hands, postgres: EmbeddedPostgres) -> None:
    faults = Faults()
    worker = ticker_of(hands, Cron(Play(), EVERY_SECOND), observer=faults)
    async with running(worker):
        await asyncio.to_thread(postgres.stop)

        async def it_is_noticed() -> bool:
            return not worker._availability.is_up()

        await wait_until(it_is_noticed)
        await asyncio.to_thread(postgres.start)

        async def a_tick_is_enqueued() -> bool:
            return worker._availability.is_up() and bool(await hands.rows("id"))

        await wait_until(a_tick_is_enqueued)
    assert faults.seen == []


async def test_an_empty_schedule_asks_nothing(hands: Hands) -> None:
    await ticker_of(hands).run()


def test_the_pruned_past_is_as_good_as_none() -> None:
    """newest_tick looks back no further than the grace, however old the last tick is."""
    cron = every_minute(grace=timedelta(minutes=2))
    until = datetime(2026, 1, 1, tzinfo=UTC)
    assert cron.newest_tick(datetime(1970, 1, 1, tzinfo=UTC), until) == until
