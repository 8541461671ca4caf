"""What a handler may not do with its session, and the sentence that it gets."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Note, effect
from worker.errors import SessionMisuse
from worker.handler import Handler
from worker.outcome import Completed, Dead, Retrying

Misuse = Callable[[AsyncSession], Awaitable[object]]


async def begins(session: AsyncSession) -> None:
    async with session.begin():
        pass


async def is_left_by_with(session: AsyncSession) -> None:
    async with session:
        pass


async def gathers(session: AsyncSession) -> None:
    await asyncio.gather(effect(session, "a"), effect(session, "b"))


async def waits_for(session: AsyncSession) -> None:
    await asyncio.wait_for(effect(session, "a"), 5)


async def groups(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(effect(session, "a"))


async def goes_to_a_thread(session: AsyncSession) -> None:
    await asyncio.to_thread(session.sync_session.execute, text("select 1"))


async def failure(bench: Bench, misuse: Misuse, *, once: bool = True) -> str:
    """The sentence that a handler gets who works, misuses its session and goes on."""

    async def misusing(job: Note, session: AsyncSession) -> None:
        await effect(session, "before")
        await misuse(session)
        await effect(session, "after")

    outcome = await bench.run(Handler(Note, misusing, once=once), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying | Dead), outcome
    return outcome.error


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("misuse", "sentence"),
    [
        (AsyncSession.commit, "A handler called commit() on its session"),
        (AsyncSession.rollback, "A handler called rollback() on its session"),
        (AsyncSession.close, "A handler called close() on its session"),
        (AsyncSession.aclose, "A handler called close() on its session"),
        (AsyncSession.reset, "A handler called reset() on its session"),
        (AsyncSession.invalidate, "A handler called invalidate() on its session"),
        (begins, "A handler called begin() on its session"),
        (is_left_by_with, "A handler called close() on its session"),
        (gathers, "A handler used its session from a second task"),
        (waits_for, "A handler used its session from a second task"),
        (groups, "A handler used its session from a second task"),
        (goes_to_a_thread, "A handler used its session from a second task or thread"),
    ],
)
async def test_a_handler_that_ends_its_transaction_or_shares_its_session_gets_a_sentence(
    bench: Bench, misuse: Misuse, sentence: str, *, once: bool
) -> None:
    assert (await failure(bench, misuse, once=once)).startswith(f"SessionMisuse: {sentence}")
    assert await bench.effects() == []


async def test_the_sentence_says_why_not_and_what_to_do(bench: Bench) -> None:
    sentence = await failure(bench, AsyncSession.commit)
    assert "its done mark and its follow-up jobs commit together" in sentence
    assert "begin_nested()" in sentence


@pytest.mark.parametrize("misuse", [AsyncSession.commit, AsyncSession.rollback, gathers])
async def test_a_misuse_that_the_handler_swallows_is_its_failure_all_the_same(bench: Bench, misuse: Misuse) -> None:
    async def swallowing(session: AsyncSession) -> None:
        with suppress(SessionMisuse):
            await misuse(session)

    assert (await failure(bench, swallowing)).startswith("SessionMisuse")
    assert await bench.effects() == []


async def by_sql(session: AsyncSession) -> None:
    await session.execute(text("commit"))


async def by_sql_rollback(session: AsyncSession) -> None:
    await session.execute(text("rollback"))


async def by_connection(session: AsyncSession) -> None:
    await (await session.connection()).commit()


async def by_connection_rollback(session: AsyncSession) -> None:
    await (await session.connection()).rollback()


async def by_sql_with_a_comment(session: AsyncSession) -> None:
    await session.execute(text("/* route */ -- done\n commit"))


async def by_sql_without_parameters(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.exec_driver_sql("commit", execution_options={"no_parameters": True})


async def by_driver_among_others(session: AsyncSession) -> None:
    raw: Any = await (await session.connection()).get_raw_connection()
    await raw.driver_connection.execute("select 1; commit; begin")


async def by_driver_with_a_chain(session: AsyncSession) -> None:
    raw: Any = await (await session.connection()).get_raw_connection()
    await raw.driver_connection.execute("select 1; commit and chain")


MISUSES = [
    by_sql,
    by_sql_rollback,
    by_sql_with_a_comment,
    by_sql_without_parameters,
    by_connection,
    by_connection_rollback,
    by_driver_among_others,
    by_driver_with_a_chain,
]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("misuse", MISUSES)
async def test_a_handler_that_ends_the_transaction_behind_the_sessions_back_is_dead_with_a_sentence(
    bench: Bench, misuse: Misuse, *, direct: bool
) -> None:
    """Another attempt would do it again, so there is none."""

    async def misusing(job: Note, session: AsyncSession) -> None:
        await effect(session, "before")
        await misuse(session)
        await effect(session, "after")

    delivery = bench.direct(Note()) if direct else await bench.enqueued(Note())
    outcome = await bench.run(Handler(Note, misusing), delivery)
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("TransactionEnded: The handler ended its transaction by itself")
    assert await bench.runs() == [("dead", 1)]
    assert await bench.rows() == 0


async def by_driver_unseen(session: AsyncSession) -> None:
    raw: Any = await (await session.connection()).get_raw_connection()
    await raw.driver_connection.fetch("commit")


async def by_driver_with_a_transaction_after(session: AsyncSession) -> None:
    raw: Any = await (await session.connection()).get_raw_connection()
    await raw.driver_connection.fetch("commit and chain")


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("misuse", [by_driver_unseen, by_driver_with_a_transaction_after])
async def test_a_commit_by_the_driver_that_nobody_saw_leaves_no_run_that_is_done(
    bench: Bench, misuse: Misuse, *, direct: bool
) -> None:
    async def committing(job: Note, session: AsyncSession) -> None:
        await effect(session, "half")
        await misuse(session)
        raise ValueError("half of the work is missing")

    delivery = bench.direct(Note()) if direct else await bench.enqueued(Note())
    outcome = await bench.run(Handler(Note, committing), delivery)
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("TransactionEnded: The handler ended its transaction by itself")
    assert await bench.runs() == [("dead", 1)]


async def test_a_connection_that_goes_back_to_the_pool_is_watched_no_more(bench: Bench) -> None:
    """Whoever has it next may commit, though the handler that gave it away still runs."""
    drivers: list[Any] = []

    async def giving_away(job: Note, session: AsyncSession) -> None:
        connection = await session.connection()
        drivers.append((await connection.get_raw_connection()).driver_connection)
        assert drivers[0].guard is not None
        await connection.close()
        assert drivers[0].guard is None

    assert not isinstance(await bench.run(Handler(Note, giving_away), bench.direct(Note())), Completed)
    assert drivers[0].guard is None


async def test_a_handlers_own_text_may_speak_of_a_commit(bench: Bench) -> None:
    async def telling(job: Note, session: AsyncSession) -> None:
        await effect(session, "commit; rollback")
        await session.execute(text("-- commit\nselect 1"))

    assert await bench.run(Handler(Note, telling), bench.direct(Note())) == Completed(None)


async def test_a_comment_ends_where_postgresql_ends_it(bench: Bench) -> None:
    async def hinting(job: Note, session: AsyncSession) -> None:
        await session.execute(text("/*+ SeqScan(x) */ select case when true then 1 else 0 /* none */ end"))

    assert await bench.run(Handler(Note, hinting), bench.direct(Note())) == Completed(None)


async def by_set(session: AsyncSession) -> None:
    await session.execute(text("set search_path = elsewhere, public"))


async def by_function(session: AsyncSession) -> None:
    await session.execute(select(func.set_config("search_path", "elsewhere, public", False)))  # noqa: FBT003 - SQL's own


async def by_driver(session: AsyncSession) -> None:
    raw: Any = await (await session.connection()).get_raw_connection()
    await raw.driver_connection.execute("set search_path = elsewhere, public")


async def by_function_of_a_function(session: AsyncSession) -> None:
    told = {"path": "ELSEWHERE, public"}
    await session.execute(text("select set_config('search_path', lower(cast(:path as text)), false)"), told)


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("sets", [by_set, by_function, by_function_of_a_function, by_driver])
async def test_a_setting_of_the_session_is_not_handed_on_to_the_next_job(
    bench: Bench, sets: Misuse, *, once: bool
) -> None:
    paths: list[str] = []

    async def setting(job: Note, session: AsyncSession) -> None:
        await sets(session)
        paths.append((await session.execute(text("show search_path"))).scalar_one())

    async def looking(job: Note, session: AsyncSession) -> None:
        paths.append((await session.execute(text("show search_path"))).scalar_one())

    for handler in (Handler(Note, setting, once=once), Handler(Note, looking, once=once)):
        assert await bench.run(handler, bench.direct(Note())) == Completed(None)
    assert paths == ["elsewhere, public", '"$user", public']


@pytest.mark.parametrize(
    "statement",
    ["select 1 as n into temporary table left_behind", "create table pg_temp.left_behind as select 1 as n"],
)
async def test_a_temporary_table_is_not_handed_on_however_it_was_made(bench: Bench, statement: str) -> None:
    async def making(job: Note, session: AsyncSession) -> None:
        await session.execute(text(statement))

    for _ in range(2):
        assert await bench.run(Handler(Note, making), bench.direct(Note())) == Completed(None)


async def test_who_deallocates_what_is_prepared_harms_no_other(bench: Bench) -> None:
    async def asking(job: Note, session: AsyncSession) -> None:
        await session.execute(text("select 1"))

    async def deallocating(job: Note, session: AsyncSession) -> None:
        await session.execute(text("deallocate all"))

    asks, deallocates = Handler(Note, asking), Handler(Note, deallocating)
    assert await bench.run(asks, bench.direct(Note())) == Completed(None)
    await bench.run(deallocates, bench.direct(Note()))
    assert await bench.run(asks, bench.direct(Note())) == Completed(None)


async def test_a_setting_of_the_transaction_costs_no_connection(bench: Bench) -> None:
    backends: list[int] = []

    async def setting(job: Note, session: AsyncSession) -> None:
        await session.execute(text("set local search_path = elsewhere, public"))
        await session.execute(select(func.set_config("search_path", "elsewhere", True)))  # noqa: FBT003 - SQL's own
        backends.append((await session.execute(text("select pg_backend_pid()"))).scalar_one())

    for _ in range(2):
        assert await bench.run(Handler(Note, setting), bench.direct(Note())) == Completed(None)
    assert len(set(backends)) == 1


@pytest.mark.parametrize("once", [True, False])
async def test_a_savepoint_that_is_left_open_commits_with_the_rest(bench: Bench, *, once: bool) -> None:
    async def leaving(job: Note, session: AsyncSession) -> None:
        await effect(session, "outside")
        _ = await session.begin_nested()
        await effect(session, "within")

    assert await bench.run(Handler(Note, leaving, once=once), bench.direct(Note())) == Completed(None)
    assert await bench.effects() == ["outside", "within"]


async def test_begin_nested_is_fine_however_it_ends(bench: Bench) -> None:
    async def nesting(job: Note, session: AsyncSession) -> None:
        async with session.begin_nested():
            await effect(session, "kept")
            async with session.begin_nested() as inner:
                await effect(session, "undone")
                await inner.rollback()
        outer = await session.begin_nested()
        await effect(session, "kept too")
        await outer.commit()

    assert await bench.run(Handler(Note, nesting), await bench.enqueued(Note())) == Completed(None)
    assert await bench.effects() == ["kept", "kept too"]


async def test_tasks_that_leave_the_session_alone_are_fine(bench: Bench) -> None:
    async def gathering(job: Note, session: AsyncSession) -> list[str]:
        answers = await asyncio.gather(*(asyncio.sleep(0, str(number)) for number in range(3)))
        for answer in answers:
            async with asyncio.timeout(5):
                await effect(session, answer)
        return answers

    assert await bench.run(Handler(Note, gathering), await bench.enqueued(Note())) == Completed(["0", "1", "2"])
    assert await bench.effects() == ["0", "1", "2"]


async def test_a_task_that_outlives_its_handler_can_do_no_more(bench: Bench) -> None:
    left: list[asyncio.Task[None]] = []
    ended = asyncio.Event()

    async def straggling(job: Note, session: AsyncSession) -> None:
        async def later() -> None:
            await ended.wait()
            await effect(session, "late")

        left.append(asyncio.create_task(later()))

    assert isinstance(await bench.run(Handler(Note, straggling), await bench.enqueued(Note())), Completed)
    ended.set()
    with pytest.raises(Exception, match=r"second task|closed"):
        await left[0]
    assert await bench.effects() == []


async def commits_its_connection(session: AsyncSession) -> None:
    await effect(session, "work")
    await (await session.connection()).commit()


async def has_the_adapter_commit(session: AsyncSession) -> None:
    await effect(session, "work")
    await session.run_sync(lambda sync: sync.connection().connection.commit())


@pytest.mark.parametrize("misuse", [commits_its_connection, has_the_adapter_commit])
@pytest.mark.parametrize("once", [True, False])
async def test_a_commit_that_was_refused_leaves_no_transaction_to_the_next_job(
    own: Bench, misuse: Misuse, *, once: bool
) -> None:
    async def committing(job: Note, session: AsyncSession) -> None:
        await misuse(session)

    async def working(job: Note, session: AsyncSession) -> None:
        await effect(session, "the next")

    outcome = await own.run(Handler(Note, committing, once=once), await own.enqueued(Note()))
    assert isinstance(outcome, Dead)
    assert "ended" in outcome.error
    for _ in range(3):
        assert isinstance(await own.run(Handler(Note, working), await own.enqueued(Note())), Completed)
    assert await own.effects() == ["the next"] * 3
    assert own.told.faults == []
