"""The commit: the job's work, its done mark and the jobs it enqueues, together or not at all."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from itertools import count

from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, UOWTransaction

from tests.runtime.bench import Bench, Grip, Note, Taken, effect, slow_commit
from tests.runtime.postgres_proxy import COMMIT_SENT, COMMITTED, PostgresProxy
from tests.support.waiting import wait_until
from worker.errors import Snooze
from worker.handler import Handler
from worker.outbox import enqueue
from worker.outcome import Completed, Dead, Duplicate, Released, Retrying

KEY = 4711


async def noting(job: Note, session: AsyncSession) -> str:
    await effect(session, job.text)
    return "noted"


async def test_work_done_mark_and_follow_up_jobs_commit_together(bench: Bench) -> None:
    async def working(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        enqueue(session, Note(text="next"))
        await session.flush()
        await slow_commit(session, KEY)

    delivery = await bench.enqueued(Note())
    async with bench.locked(KEY):
        attempt = asyncio.create_task(bench.run(Handler(Note, working), delivery))
        await wait_until(bench.is_waiting)
        assert (await bench.effects(), await bench.runs(), await bench.rows()) == ([], [], 1)
    assert await attempt == Completed(None)
    assert (await bench.effects(), await bench.runs()) == (["work"], [("completed", 0)])
    ((waiting,),) = await bench.all("select message from worker.outbox")
    assert b'"next"' in waiting


async def test_or_not_at_all(bench: Bench) -> None:
    async def failing(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        enqueue(session, Note(text="next"))
        await session.flush()
        raise ValueError

    assert isinstance(await bench.run(Handler(Note, failing), await bench.enqueued(Note())), Retrying)
    assert (await bench.effects(), await bench.runs(), await bench.rows()) == ([], [("retrying", 1)], 1)


async def test_what_the_handler_added_is_flushed_for_it(bench: Bench) -> None:
    async def adding(job: Note, session: AsyncSession) -> None:
        session.add(Taken(name="a"))

    assert isinstance(await bench.run(Handler(Note, adding), await bench.enqueued(Note())), Completed)
    assert await bench.all("select name from taken") == [("a",)]


async def test_what_a_listener_adds_to_that_flush_commits_too(bench: Bench) -> None:
    async def adding(job: Note, session: AsyncSession) -> None:
        def add_more(_session: Session, _context: UOWTransaction) -> None:
            if added := next(more, None):
                session.add(Taken(name=added))
                enqueue(session, Note(text="next"))

        more = iter(("b", "c"))
        event.listen(session.sync_session, "after_flush", add_more)
        session.add(Taken(name="a"))

    assert isinstance(await bench.run(Handler(Note, adding), await bench.enqueued(Note())), Completed)
    assert await bench.all("select name from taken order by name") == [("a",), ("b",), ("c",)]
    assert await bench.rows() == 2


async def test_a_listener_that_adds_without_end_is_the_jobs_death(bench: Bench) -> None:
    async def adding(job: Note, session: AsyncSession) -> None:
        names = map(str, count())
        event.listen(session.sync_session, "after_flush", lambda *_: session.add(Taken(name=next(names))))
        session.add(Taken(name="first"))

    outcome = await bench.run(Handler(Note, adding), await bench.enqueued(Note()))
    assert isinstance(outcome, Dead)
    assert "wasn't clean after 100 flushes" in outcome.error
    assert await bench.all("select name from taken") == []


async def test_a_flush_that_fails_at_the_end_is_the_jobs_failure(bench: Bench) -> None:
    async def adding(job: Note, session: AsyncSession) -> None:
        session.add(Taken(name="a"))

    await bench.all("insert into taken values ('a')")
    outcome = await bench.run(Handler(Note, adding), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("IntegrityError")


async def test_a_commit_under_way_is_finished_though_the_attempt_is_cancelled(bench: Bench) -> None:
    async def working(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await slow_commit(session, KEY)

    async with bench.locked(KEY):
        attempt = asyncio.create_task(bench.run(Handler(Note, working), await bench.enqueued(Note())))
        await wait_until(bench.is_waiting)
        for _ in range(3):
            attempt.cancel()
            await asyncio.sleep(0)
    assert await attempt == Completed(None)
    assert await bench.effects() == ["work"]


async def test_the_timeout_ends_before_the_commit(bench: Bench) -> None:
    async def working(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await slow_commit(session, KEY)

    handler = Handler(Note, working, timeout=timedelta(milliseconds=500))
    async with bench.locked(KEY):
        attempt = asyncio.create_task(bench.run(handler, await bench.enqueued(Note())))
        await wait_until(bench.is_waiting)
        done, _ = await asyncio.wait([attempt], timeout=0.7)
        assert not done
    assert await attempt == Completed(None)


async def test_a_constraint_that_fails_in_the_commit_is_a_failure_and_nothing_is_done(own: Bench) -> None:
    await own.all("alter table effect add constraint one unique (note) deferrable initially deferred")
    await own.all("insert into effect (note) values ('a')")
    outcome = await own.run(Handler(Note, noting), await own.enqueued(Note(text="a")))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("IntegrityError")
    assert await own.runs() == [("retrying", 1)]


async def test_a_handler_that_swallows_an_integrity_error_fails_and_hears_of_begin_nested(bench: Bench) -> None:
    async def by_statement(job: Note, session: AsyncSession) -> None:
        await effect(session, "before")
        with suppress(IntegrityError):
            await session.execute(text("insert into taken values ('a')"))

    async def by_flush(job: Note, session: AsyncSession) -> None:
        await effect(session, "before")
        session.add(Taken(name="a"))
        with suppress(IntegrityError):
            await session.flush()

    async def and_goes_on(job: Note, session: AsyncSession) -> None:
        await by_statement(job, session)
        await effect(session, "after")

    async def and_goes_on_after_flush(job: Note, session: AsyncSession) -> None:
        await by_flush(job, session)
        await effect(session, "after")

    async def and_swallows_everything(job: Note, session: AsyncSession) -> None:
        for _ in range(3):
            with suppress(SQLAlchemyError):
                await and_goes_on_after_flush(job, session)

    await bench.all("insert into taken values ('a')")
    for handler in (by_statement, by_flush, and_goes_on, and_goes_on_after_flush, and_swallows_everything):
        outcome = await bench.run(Handler(Note, handler), await bench.enqueued(Note()))
        assert isinstance(outcome, Retrying), handler
        assert outcome.error.startswith("SwallowedError: "), (handler, outcome)
        assert "begin_nested()" in outcome.error
    assert await bench.effects() == []
    assert set(await bench.runs()) == {("retrying", 1)}


async def test_a_part_that_may_fail_stands_in_begin_nested(bench: Bench) -> None:
    async def careful(job: Note, session: AsyncSession) -> str:
        await effect(session, "before")
        try:
            async with session.begin_nested():
                await effect(session, "within")
                session.add(Taken(name="a"))
        except IntegrityError:
            await effect(session, "instead")
        return "done"

    await bench.all("insert into taken values ('a')")
    assert await bench.run(Handler(Note, careful), await bench.enqueued(Note())) == Completed("done")
    assert await bench.effects() == ["before", "instead"]


async def test_a_commit_whose_answer_was_lost_is_read_and_not_repeated(far: Bench, proxy: PostgresProxy) -> None:
    delivery = await far.enqueued(Note(text="a"))
    proxy.cut_after = COMMITTED
    assert await far.run(Handler(Note, noting), delivery) == Completed("noted")
    assert proxy.cuts == 1
    assert await far.effects() == ["a"]
    assert await far.runs() == [("completed", 0)]


async def test_a_commit_that_never_arrived_is_done_again(far: Bench, proxy: PostgresProxy) -> None:
    delivery = await far.enqueued(Note(text="a"))
    proxy.cut_before = COMMIT_SENT
    assert await far.run(Handler(Note, noting), delivery) == Completed("noted")
    assert proxy.cuts == 1
    assert await far.effects() == ["a"]
    assert await far.runs() == [("completed", 0)]


async def test_the_fate_of_a_commit_is_read_under_the_runs_lock_and_never_while_it_is_open(
    far: Bench, bench: Bench, proxy: PostgresProxy
) -> None:
    async def working(job: Note, session: AsyncSession) -> str:
        await effect(session, "work")
        await slow_commit(session, KEY)
        return "worked"

    delivery = await far.enqueued(Note(), hold=Grip(ours=False))
    async with bench.locked(KEY):
        attempt = asyncio.create_task(far.run(Handler(Note, working), delivery))
        await wait_until(bench.is_waiting)
        proxy.hang_up()
        # A plain reader sees no run here. The second transaction waits for the first one's lock.
        await wait_until(lambda: bench.is_waiting(wanted="transactionid"))
        assert await bench.runs() == []
    assert await attempt == Completed("worked")
    assert await bench.effects() == ["work"]


async def test_a_fate_that_cant_be_read_is_not_acknowledged_and_the_next_delivery_reads_it(
    far: Bench, bench: Bench, proxy: PostgresProxy
) -> None:
    delivery = await far.enqueued(Note(text="a"))

    async def working(job: Note, session: AsyncSession) -> str:
        await slow_commit(session, KEY)
        return await noting(job, session)

    async with bench.locked(KEY):
        attempt = asyncio.create_task(far.run(Handler(Note, working), delivery))
        await wait_until(bench.is_waiting)
        await proxy.stop()
        outcome = await attempt
    assert isinstance(outcome, Released)
    assert await bench.run(Handler(Note, working), delivery) == Duplicate("noted")
    assert await bench.effects() == ["a"]


async def test_a_session_is_fresh_for_every_attempt_and_its_connection_comes_from_one_engine(bench: Bench) -> None:
    sessions: list[AsyncSession] = []

    async def keeping(job: Note, session: AsyncSession) -> None:
        sessions.append(session)
        assert not session.new
        session.add(Taken(name="a"))
        raise Snooze(timedelta(0))

    delivery = await bench.enqueued(Note())
    for _ in range(2):
        await bench.run(Handler(Note, keeping), delivery)
    assert sessions[0].sync_session is not sessions[1].sync_session
    assert await bench.all("select name from taken") == []
