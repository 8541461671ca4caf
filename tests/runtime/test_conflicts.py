"""Deadlocks and serialization failures: tried again at once, with a fresh session, and counted by nobody."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Grip, Note, effect
from worker.attempt import IMMEDIATE_RETRIES
from worker.handler import AnyHandler, BatchHandler, Handler, Isolation
from worker.outcome import Completed, Dead, Duplicate, Released, Retrying
from worker.retry import RetryPolicy

ONCE = RetryPolicy(attempts=1)
STRICT: tuple[Isolation, ...] = ("REPEATABLE READ", "SERIALIZABLE")


async def spend(session: AsyncSession, account: int, cents: int = 1) -> None:
    await session.execute(
        text("update balance set cents = cents - :cents where id = :id"), {"cents": cents, "id": account}
    )


async def test_two_jobs_that_deadlock_are_both_applied_and_no_attempt_is_burnt(bench: Bench, other: Bench) -> None:
    both_hold = asyncio.Barrier(2)
    tries: list[int] = []

    def crossing(first: int, second: int) -> Handler[Note]:
        async def cross(job: Note, session: AsyncSession) -> str:
            tries.append(first)
            await session.execute(text("set local deadlock_timeout = '10ms'"))
            await spend(session, first)
            if tries.count(first) == 1:
                await both_hold.wait()
            await spend(session, second)
            return "crossed"

        return Handler(Note, cross)

    first, second = await asyncio.gather(
        bench.run(crossing(1, 2), await bench.enqueued(Note())),
        other.run(crossing(2, 1), await other.enqueued(Note())),
    )
    assert first == second == Completed("crossed")
    assert len(tries) > 2
    assert await bench.all("select cents from balance order by id") == [(98,), (98,)]
    assert await bench.runs() == [("completed", 0)] * 2
    assert await bench.all("select * from worker.attempt") == []


@pytest.mark.parametrize("isolation", STRICT)
async def test_a_serialization_failure_is_tried_again_at_once_with_a_fresh_session(
    bench: Bench, isolation: Isolation
) -> None:
    sessions: list[AsyncSession] = []

    async def losing_once(job: Note, session: AsyncSession) -> int:
        seen = (await session.execute(text("select cents from balance where id = 1"))).scalar_one()
        if not sessions:
            await bench.all("update balance set cents = cents - 50 where id = 1")
        sessions.append(session)
        await spend(session, 1)
        return int(seen)

    delivery = await bench.enqueued(Note())
    assert await bench.run(Handler(Note, losing_once, isolation=isolation), delivery) == Completed(50)
    assert sessions[0].sync_session is not sessions[1].sync_session
    assert await bench.runs() == [("completed", 0)]
    assert await bench.all("select cents from balance where id = 1") == [(49,)]


async def test_a_serialization_failure_that_shows_in_the_commit_is_one_too(bench: Bench) -> None:
    """Write skew: each reads what the other writes, and only the commit tells."""
    tries: list[int] = []

    async def skewed(job: Note, session: AsyncSession) -> int:
        total = (await session.execute(text("select sum(cents) from balance"))).scalar_one()
        tries.append(int(total))
        await spend(session, 1)
        if len(tries) == 1:
            async with bench.engine.connect() as plain:
                rival = await plain.execution_options(isolation_level="SERIALIZABLE")
                await rival.execute(text("select sum(cents) from balance"))
                await rival.execute(text("update balance set cents = cents - 1 where id = 2"))
                await rival.commit()
        return int(total)

    delivery = await bench.enqueued(Note())
    assert await bench.run(Handler(Note, skewed, isolation="SERIALIZABLE"), delivery) == Completed(199)
    assert tries == [200, 199]
    assert await bench.runs() == [("completed", 0)]


async def test_after_three_immediate_retries_it_counts_as_a_failure(bench: Bench) -> None:
    tries: list[int] = []

    async def always_losing(job: Note, session: AsyncSession) -> None:
        tries.append(1)
        await session.execute(text("select cents from balance where id = 1"))
        await bench.all("update balance set cents = cents - 1 where id = 1")
        await spend(session, 1)

    twice = RetryPolicy(attempts=2, base=timedelta(0))
    handler = Handler(Note, always_losing, isolation="REPEATABLE READ", retry=twice)
    delivery = await bench.enqueued(Note())
    assert isinstance(await bench.run(handler, delivery), Retrying)
    assert len(tries) == 1 + IMMEDIATE_RETRIES == 4
    assert await bench.runs() == [("retrying", 1)]
    assert isinstance(await bench.run(handler, delivery), Dead)


@pytest.mark.parametrize("isolation", STRICT)
async def test_two_workers_with_one_delivery_at_a_strict_level_have_one_effect_and_no_failure(
    bench: Bench, other: Bench, isolation: Isolation
) -> None:
    async def noting(job: Note, session: AsyncSession) -> str:
        await effect(session, "a")
        return "done"

    delivery = await bench.enqueued(Note())
    handler = Handler(Note, noting, isolation=isolation)
    outcomes = await asyncio.gather(*(side.run(handler, delivery) for side in (bench, other) * 2))
    assert outcomes.count(Completed("done")) == 1
    assert outcomes.count(Duplicate("done")) == 3
    assert await bench.effects() == ["a"]
    assert await bench.all("select * from worker.attempt") == []


async def test_a_lock_timeout_in_the_ledgers_own_statement_counts_nothing(
    bench: Bench, other: Bench, impatient: None
) -> None:
    """The relay holds the row just then, and the handler's limit is a short one."""

    async def noting(job: Note, session: AsyncSession) -> None:
        await effect(session, "a")

    delivery = await bench.enqueued(Note(), hold=Grip())
    handler = Handler(Note, noting, lock_timeout=timedelta(milliseconds=50))
    async with other.engine.connect() as relay:
        await relay.execute(text("select from worker.outbox for update"))
        outcome = await bench.run(handler, delivery)
        assert isinstance(outcome, Released)
        assert outcome.delay > timedelta(0)
        await relay.rollback()
    assert (await bench.effects(), await bench.runs()) == ([], [])
    assert isinstance(await bench.run(handler, delivery), Completed)


async def test_a_conflict_within_begin_nested_is_still_the_transactions(bench: Bench) -> None:
    """At a strict level nothing but a new transaction helps; the error comes out of the block by itself."""
    tries: list[int] = []

    async def nesting(job: Note, session: AsyncSession) -> None:
        tries.append(1)
        await session.execute(text("select cents from balance where id = 1"))
        if len(tries) == 1:
            await bench.all("update balance set cents = 7 where id = 1")
        async with session.begin_nested():
            await spend(session, 1)

    delivery = await bench.enqueued(Note())
    assert isinstance(await bench.run(Handler(Note, nesting, isolation="REPEATABLE READ"), delivery), Completed)
    assert await bench.all("select cents from balance where id = 1") == [(6,)]


@pytest.mark.parametrize("kind", ["alone", "batch", "once=False"])
async def test_a_table_that_is_changed_under_a_worker_burns_no_attempt(own: Bench, kind: str) -> None:
    """What was prepared on a connection before a migration isn't valid after it, and asyncpg says so once."""

    async def look(_job: Note | Sequence[Note], session: AsyncSession) -> None:
        await session.execute(text("select * from changing"))

    handlers: dict[str, AnyHandler] = {
        "alone": Handler(Note, look, retry=ONCE),
        "batch": BatchHandler(Note, look, retry=ONCE),
        "once=False": Handler(Note, look, retry=ONCE, once=False),
    }
    await own.all("create table changing (n int)")
    for statement in ("select 1", "alter table changing add column more int"):
        await own.all(statement)
        deliveries = [await own.enqueued(Note()) for _ in range(2)]
        assert [type(outcome) for outcome in await own.run_all(handlers[kind], deliveries)] == [Completed, Completed]
    assert own.told.faults == []
    assert await own.all("select * from worker.attempt") == []


async def test_an_error_of_the_database_that_a_handler_makes_itself_is_its_failure(bench: Bench) -> None:
    async def refuse(job: Note, session: AsyncSession) -> None:
        raise IntegrityError("insert", {}, None)  # type: ignore[arg-type]  # as no type checker has seen it

    outcome = await bench.run(Handler(Note, refuse, retry=ONCE), await bench.enqueued(Note()))
    assert isinstance(outcome, Dead)
    assert bench.told.faults == []
