"""once=False: no run of a success, nothing asked of PostgreSQL before the handler asks; at least once."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Note, Taken, effect, slow_commit
from tests.runtime.postgres_proxy import COMMITTED, PostgresProxy
from tests.support.waiting import wait_until
from worker.errors import Permanent, Snooze
from worker.handler import Handler
from worker.outcome import Completed, Dead, Duplicate, Released, Retrying, Snoozed
from worker.retry import RetryPolicy
from worker.run import current_run

NOW = RetryPolicy(attempts=3, base=timedelta(0))


async def noting(job: Note, session: AsyncSession) -> str:
    await effect(session, job.text)
    return job.text


async def pure(job: Note, session: AsyncSession) -> str:
    return job.text


async def failing(job: Note, session: AsyncSession) -> None:
    await effect(session, "work")
    raise ValueError("no")


@pytest.fixture
def asked(bench: Bench) -> Iterator[list[str]]:
    """What was asked of PostgreSQL: statements, and connections that were taken from the pool."""
    seen: list[str] = []
    engine = bench.engine.sync_engine

    def statement(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    def checkout(*_arguments: object) -> None:
        seen.append("connection")

    event.listen(engine, "before_cursor_execute", statement)
    event.listen(engine, "checkout", checkout)
    yield seen
    event.remove(engine, "before_cursor_execute", statement)
    event.remove(engine, "checkout", checkout)


async def test_a_success_keeps_no_run_and_takes_its_outbox_row(bench: Bench) -> None:
    assert await bench.run(Handler(Note, noting, once=False), await bench.enqueued(Note(text="a"))) == Completed("a")
    assert (await bench.effects(), await bench.runs(), await bench.rows()) == (["a"], [], 0)


async def test_a_direct_job_whose_handler_asks_nothing_asks_postgresql_nothing(bench: Bench, asked: list[str]) -> None:
    assert await bench.run(Handler(Note, pure, once=False), bench.direct(Note(text="a"))) == Completed("a")
    assert asked == []


async def test_the_session_asks_when_the_handler_does_and_no_more(bench: Bench, asked: list[str]) -> None:
    await bench.run(Handler(Note, noting, once=False), bench.direct(Note(text="a")))
    assert [statement.split()[0] for statement in asked] == ["connection", "select", "insert"]


async def test_it_is_at_least_once_so_a_second_delivery_runs_again(bench: Bench) -> None:
    delivery = bench.direct(Note(text="a"))
    outcomes = [await bench.run(Handler(Note, noting, once=False), delivery) for _ in range(2)]
    assert outcomes == [Completed("a")] * 2
    assert await bench.effects() == ["a", "a"]


async def test_a_failure_is_kept_and_counted_whatever_redis_counts(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    handler = Handler(Note, failing, once=False, retry=NOW)
    # After a wipe Redis counts from zero again.
    outcomes = [await bench.run(handler, replace(delivery, failures=known)) for known in (0, 1, 0)]
    assert [type(outcome) for outcome in outcomes] == [Retrying, Retrying, Dead]
    assert await bench.runs() == [("dead", 3)]
    assert bench.told.attempts == [1, 2, 1]
    assert (await bench.effects(), await bench.rows()) == ([], 0)


async def test_a_success_after_a_failure_completes_the_open_run(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    await bench.run(Handler(Note, failing, once=False, retry=NOW), delivery)
    assert isinstance(await bench.run(Handler(Note, noting, once=False), delivery), Completed)
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error, run.next_at) == ("completed", 1, None, None)
    assert await bench.rows() == 0


async def test_a_direct_job_that_failed_is_adopted_and_its_later_success_leaves_nothing_open(bench: Bench) -> None:
    delivery = bench.direct(Note(text="a"))
    report = await bench.report(Handler(Note, failing, once=False, retry=NOW), delivery)
    assert await bench.rows() == 1
    second = replace(delivery, message=report.adopted)
    assert isinstance(await bench.run(Handler(Note, noting, once=False), second), Completed)
    assert (await bench.runs(), await bench.rows()) == ([("completed", 1)], 0)


async def test_a_snooze_and_a_permanent_error_mean_what_they_always_mean(bench: Bench) -> None:
    async def snoozing(job: Note, session: AsyncSession) -> None:
        raise Snooze(timedelta(hours=1))

    async def never(job: Note, session: AsyncSession) -> None:
        raise Permanent("never")

    delivery = await bench.enqueued(Note())
    assert await bench.run(Handler(Note, snoozing, once=False), delivery) == Snoozed(timedelta(hours=1))
    assert await bench.runs() == [("snoozed", 0)]
    assert await bench.run(Handler(Note, never, once=False), delivery) == Dead("Permanent: never")
    assert await bench.run(Handler(Note, never), delivery) == Duplicate(None, failed="Permanent: never")


async def test_what_a_second_call_raises_is_told_without_what_the_first_one_raised(bench: Bench) -> None:
    calls = count()

    async def failing_twice(job: Note, session: AsyncSession) -> None:
        if next(calls) == 0:
            await session.execute(text("do $$ begin raise exception using errcode = '40001'; end $$"))
        raise ValueError("no")

    outcome = await bench.run(Handler(Note, failing_twice, once=False), bench.direct(Note()))
    [(told, error)] = bench.told.endings
    assert (told, next(calls)) == (outcome, 2)
    assert isinstance(error, ValueError)
    assert error.__context__ is None


async def test_what_was_added_is_flushed_and_committed(bench: Bench) -> None:
    async def adding(job: Note, session: AsyncSession) -> None:
        session.add(Taken(name="a"))

    assert isinstance(await bench.run(Handler(Note, adding, once=False), bench.direct(Note())), Completed)
    assert await bench.all("select name from taken") == [("a",)]


async def test_a_swallowed_database_error_is_read_from_the_answer_to_commit(bench: Bench) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and no error."""

    async def swallowing(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        with suppress(DBAPIError):
            await session.execute(text("select 1 / 0"))

    outcome = await bench.run(Handler(Note, swallowing, once=False), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("SwallowedError")
    assert "begin_nested()" in outcome.error
    assert await bench.rows() == 1


async def test_the_handlers_limits_hold_for_its_transaction(bench: Bench) -> None:
    seen: list[tuple[str, ...]] = []
    names = ("statement_timeout", "lock_timeout", "transaction_isolation")
    settings = ", ".join(f"current_setting('{name}')" for name in names)

    async def looking(job: Note, session: AsyncSession) -> None:
        seen.append(tuple((await session.execute(text(f"select {settings}"))).one()))

    tight = Handler(
        Note,
        looking,
        once=False,
        isolation="SERIALIZABLE",
        statement_timeout=timedelta(seconds=5),
        lock_timeout=timedelta(seconds=6),
    )
    for handler in (tight, Handler(Note, looking, once=False)):
        assert isinstance(await bench.run(handler, bench.direct(Note())), Completed)
    assert seen == [("5s", "6s", "serializable"), ("0", "0", "read committed")]


async def test_its_timeout_is_a_failure_and_rolls_back(bench: Bench) -> None:
    async def hanging(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await session.execute(text("select pg_sleep(30)"))

    handler = Handler(Note, hanging, once=False, timeout=timedelta(milliseconds=200))
    outcome = await bench.run(handler, bench.direct(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")
    assert await bench.effects() == []


async def test_its_commit_is_finished_though_it_is_cancelled(bench: Bench) -> None:
    async def working(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await slow_commit(session, 5)

    async with bench.locked(5):
        attempt = asyncio.create_task(bench.run(Handler(Note, working, once=False), await bench.enqueued(Note())))
        await wait_until(bench.is_waiting)
        attempt.cancel()
        await asyncio.sleep(0)
    assert await attempt == Completed(None)
    assert (await bench.effects(), await bench.rows()) == (["work"], 0)


async def test_a_lost_answer_to_its_commit_means_that_it_runs_again(far: Bench, proxy: PostgresProxy) -> None:
    delivery = await far.enqueued(Note(text="a"))
    proxy.cut_after = COMMITTED
    assert await far.run(Handler(Note, noting, once=False), delivery) == Completed("a")
    assert await far.effects() == ["a", "a"]


async def test_a_row_that_cant_be_taken_yet_puts_the_job_back(bench: Bench, other: Bench, impatient: None) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    async with other.engine.connect() as relay:
        await relay.execute(text("select from worker.outbox for update"))
        assert isinstance(await bench.run(Handler(Note, noting, once=False), delivery), Released)
        await relay.rollback()
    assert await bench.runs() == []


@pytest.mark.parametrize("result", ["x" * 65_536, "a\0b", object()])
async def test_a_result_that_couldnt_be_kept_isnt_sent_to_redis_either(bench: Bench, result: object) -> None:
    async def returning(job: Note, session: AsyncSession) -> object:
        await effect(session, "work")
        return result

    assert isinstance(await bench.run(Handler(Note, returning, once=False), bench.direct(Note())), Dead)
    assert await bench.effects() == []


async def test_the_handler_learns_which_run_it_is(bench: Bench) -> None:
    async def asking(job: Note, session: AsyncSession) -> list[str]:
        run = current_run()
        return [run.job_id, str(run.attempt), run.enqueued_at.isoformat()]

    delivery = replace(bench.direct(Note(), enqueued_ms=1_700_000_000_123), failures=2)
    outcome = await bench.run(Handler(Note, asking, once=False), delivery)
    assert outcome == Completed([delivery.job_id, "3", "2023-11-14T22:13:20.123000+00:00"])


async def test_for_a_chosen_id_the_enqueue_time_is_now(bench: Bench) -> None:
    times: list[datetime] = []

    async def asking(job: Note, session: AsyncSession) -> None:
        times.append(current_run().enqueued_at)
        times.append(current_run().enqueued_at)

    before = datetime.now(UTC)
    await bench.run(Handler(Note, asking, once=False), await bench.enqueued(Note(), job_id="chosen"))
    assert before <= times[0] <= datetime.now(UTC)
    assert times[1] == times[0], "it is the same each time that the handler asks"


async def test_autocommit_is_refused_since_nothing_would_be_rolled_back(bench: Bench) -> None:
    async def autocommitting(job: Note, session: AsyncSession) -> None:
        _ = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await effect(session, "work")
        raise ValueError("after it")

    outcome = await bench.run(Handler(Note, autocommitting, once=False), bench.direct(Note()))
    assert isinstance(outcome, Retrying)
    assert "A handler asked for the isolation level AUTOCOMMIT, and its transaction has READ COMMITTED" in outcome.error
    assert await bench.effects() == []
