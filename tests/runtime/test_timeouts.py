"""What a handler may not outlive: its timeout, its statement and lock limits, a cancellation, the worker's end."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, Grip, Note, Taken, effect
from tests.support.waiting import wait_until
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler, Handler, Isolation
from worker.outcome import Cancelled, Completed, Dead, Outcome, Released, Retrying, Yielded
from worker.retry import RetryPolicy

SHORT = timedelta(milliseconds=100)
SLEEP = "select pg_sleep(30)"


async def sleeping(job: Note, session: AsyncSession) -> None:
    await effect(session, "work")
    await session.execute(text(SLEEP))


async def idling(job: Note, session: AsyncSession) -> None:
    await effect(session, "work")
    await asyncio.Event().wait()


async def nothing_runs(bench: Bench) -> bool:
    return await bench.queries() == []


async def sleeps(bench: Bench) -> bool:
    return SLEEP in await bench.queries()


async def has_begun(bench: Bench) -> bool:
    return bench.told.attempts != []


async def started(bench: Bench, handler: Handler[Note], hold: Grip) -> asyncio.Task[Outcome]:
    """The attempt, in the middle of its query."""
    attempt = asyncio.create_task(bench.run(handler, await bench.enqueued(Note(), hold=hold)))
    await wait_until(lambda: sleeps(bench))
    return attempt


async def test_a_timeout_is_a_failure_like_any_other(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    handler = Handler(Note, idling, timeout=SHORT, retry=RetryPolicy(attempts=2, base=timedelta(0)))
    outcome = await bench.run(handler, delivery)
    assert isinstance(outcome, Retrying)
    assert outcome.error == "JobTimeout: note ran longer than its timeout of 0:00:00.100000; raise it or do less."
    assert isinstance(await bench.run(handler, delivery), Dead)
    assert await bench.effects() == []


async def test_a_timeout_tells_where_the_handler_hung(bench: Bench) -> None:
    async def hanging(job: Note, session: AsyncSession) -> None:
        await asyncio.Event().wait()  # here

    await bench.run(Handler(Note, hanging, timeout=SHORT), await bench.enqueued(Note()))
    ((trace,),) = await bench.all("select traceback from worker.attempt")
    assert "await asyncio.Event().wait()  # here" in trace


async def test_a_timeout_ends_even_a_running_query_on_the_server(bench: Bench) -> None:
    outcome = await bench.run(Handler(Note, sleeping, timeout=SHORT), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")
    await wait_until(lambda: nothing_runs(bench))
    assert await bench.effects() == []


async def test_the_handlers_own_timeout_error_is_its_own(bench: Bench) -> None:
    async def impatient(job: Note, session: AsyncSession) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    outcome = await bench.run(Handler(Note, impatient), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error == "TimeoutError: "


async def test_a_handler_that_swallows_the_timeout_has_failed_all_the_same(bench: Bench) -> None:
    async def stubborn(job: Note, session: AsyncSession) -> None:
        with suppress(asyncio.CancelledError):
            await idling(job, session)

    outcome = await bench.run(Handler(Note, stubborn, timeout=SHORT), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")
    assert await bench.effects() == []


async def group_fails() -> None:
    """Leave the task with a cancellation that nobody answered, as Python 3.11 does."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError

    with suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())


async def test_a_failed_task_group_in_a_handler_is_no_cancellation_of_the_job(bench: Bench) -> None:
    async def failing(job: Note, session: AsyncSession) -> None:
        await group_fails()
        raise ValueError

    assert isinstance(await bench.run(Handler(Note, failing), await bench.enqueued(Note())), Retrying)


async def test_nor_does_it_hide_the_timeout(bench: Bench) -> None:
    async def hanging(job: Note, session: AsyncSession) -> None:
        await group_fails()
        await idling(job, session)

    outcome = await bench.run(Handler(Note, hanging, timeout=SHORT), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")


async def test_a_flush_at_the_end_is_within_the_timeout(own: Bench) -> None:
    await own.all(
        "create function sleep() returns trigger language plpgsql as 'begin perform pg_sleep(30); return new; end'"
    )
    await own.all("create trigger sleep before insert on taken for each row execute function sleep()")

    async def adding(job: Note, session: AsyncSession) -> None:
        session.add(Taken(name="a"))

    outcome = await own.run(Handler(Note, adding, timeout=SHORT), await own.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")


async def test_a_cancellation_rolls_back_even_a_running_query_and_burns_no_attempt(bench: Bench) -> None:
    attempt = await started(bench, Handler(Note, sleeping), Grip())
    attempt.cancel()
    assert await attempt == Released("the worker stops")
    await wait_until(lambda: nothing_runs(bench))
    assert (await bench.effects(), await bench.runs(), await bench.rows()) == ([], [], 1)


async def test_a_handler_that_turns_the_cancellation_into_an_error_burns_no_attempt_either(bench: Bench) -> None:
    async def turning(job: Note, session: AsyncSession) -> None:
        try:
            await session.execute(text(SLEEP))
        finally:
            raise ValueError("cleaning up went wrong")

    hold = Grip()
    attempt = await started(bench, Handler(Note, turning), hold)
    hold.stopping = True
    attempt.cancel()
    assert await attempt == Released("the worker stops")
    assert await bench.runs() == []


async def test_a_handler_that_finishes_in_spite_of_the_cancellation_is_completed(bench: Bench) -> None:
    async def finishing(job: Note, session: AsyncSession) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await effect(session, "finished")
        return "done"

    attempt = asyncio.create_task(bench.run(Handler(Note, finishing), await bench.enqueued(Note())))
    await wait_until(lambda: has_begun(bench))
    attempt.cancel()
    assert await attempt == Completed("done")
    assert await bench.effects() == ["finished"]


async def test_an_abort_cancels_for_good(bench: Bench) -> None:
    hold = Grip()
    attempt = await started(bench, Handler(Note, sleeping), hold)
    hold.aborted = True
    attempt.cancel()
    assert await attempt == Cancelled("aborted")
    assert await bench.runs() == [("cancelled", 0)]
    assert (await bench.effects(), await bench.rows()) == ([], 0)


async def test_an_abort_before_the_begin_never_calls_the_handler(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(), hold=Grip(aborted=True))
    assert await bench.run(Handler(Note, sleeping), delivery) == Cancelled("aborted before it began")
    assert bench.told.attempts == []
    assert await bench.runs() == [("cancelled", 0)]


async def test_an_abort_of_a_direct_job_is_remembered(bench: Bench) -> None:
    delivery = bench.direct(Note(), hold=Grip(aborted=True))
    assert await bench.run(Handler(Note, sleeping), delivery) == Cancelled("aborted before it began")
    assert await bench.runs() == [("cancelled", 0)]


async def stepping(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    at = (chunk.cursor or 0) + 1
    await effect(session, str(at))
    return chunk.step(at if at < job.upto else None)


async def test_a_chunked_job_yields_after_its_chunk_when_the_worker_stops_and_burns_no_attempt(bench: Bench) -> None:
    hold = Grip(stopping=True)
    delivery = await bench.enqueued(Count(upto=2), hold=hold)
    handler = ChunkedHandler(Count, stepping, cursor=int)
    assert await bench.run(handler, delivery) == Yielded()
    assert await bench.runs() == [("yielded", 0)]
    assert isinstance(await bench.run(handler, delivery), Completed)
    assert await bench.effects() == ["1", "2"]


@pytest.mark.parametrize("aborted", [False, True])
async def test_a_chunked_job_that_is_cancelled_in_its_commit_ends_after_it(bench: Bench, *, aborted: bool) -> None:
    """The commit is shielded; the cancellation must not be forgotten with it."""
    key = 12
    hold = Grip()

    async def slow(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        await session.execute(text("insert into slow_commit values (:key)"), {"key": key})
        return await stepping(job, session, chunk)

    delivery = await bench.enqueued(Count(upto=1_000), hold=hold)
    async with bench.locked(key):
        attempt = asyncio.create_task(bench.run(ChunkedHandler(Count, slow, cursor=int), delivery))
        await wait_until(bench.is_waiting)
        hold.aborted = aborted
        attempt.cancel()
        await asyncio.sleep(0)
    assert await attempt == (Cancelled("aborted") if aborted else Yielded())
    assert await bench.effects() == ["1"]
    assert await bench.rows() == (0 if aborted else 1)


# --- PostgreSQL's own limits -----------------------------------------------------------------------------------------


async def setting(session: AsyncSession, name: str) -> str:
    value: str = (await session.execute(text("select current_setting(:name)"), {"name": name})).scalar_one()
    return value


async def test_the_handlers_limits_are_set_for_its_transaction_alone(bench: Bench) -> None:
    seen: list[tuple[str, ...]] = []
    names = ("statement_timeout", "lock_timeout", "transaction_timeout")

    async def looking(job: Note, session: AsyncSession) -> None:
        seen.append(tuple([await setting(session, name) for name in names]))

    tight = Handler(
        Note,
        looking,
        timeout=timedelta(seconds=60),
        statement_timeout=timedelta(seconds=5),
        lock_timeout=timedelta(milliseconds=1500),
    )
    for handler in (tight, Handler(Note, looking, timeout=timedelta(seconds=10))):
        assert isinstance(await bench.run(handler, await bench.enqueued(Note())), Completed)
    assert seen == [("5s", "1500ms", "90s"), ("0", "0", "40s")]
    left = await bench.all("select current_setting('statement_timeout'), current_setting('transaction_timeout')")
    assert left == [("0", "0")]


async def test_a_statement_timeout_of_the_database_holds_for_handlers_that_have_none(bench: Bench) -> None:
    async def looking(job: Note, session: AsyncSession) -> str:
        return await setting(session, "statement_timeout")

    own = Handler(Note, looking, statement_timeout=timedelta(seconds=90))
    ((database,),) = await bench.all("select current_database()")
    await bench.all(f"alter database {database} set statement_timeout = '30s'")
    try:
        await bench.engine.dispose()  # connections that were there before know nothing of it
        for once in (True, False):
            outcome = await bench.run(Handler(Note, looking, once=once), await bench.enqueued(Note()))
            assert outcome == Completed("30s")
        assert await bench.run(own, await bench.enqueued(Note())) == Completed("90s")
    finally:
        await bench.all(f"alter database {database} reset statement_timeout")  # other tests have it after this one


async def test_the_ledgers_own_lock_timeout_is_two_seconds(bench: Bench) -> None:
    ((waits,),) = await bench.all("select current_setting('lock_timeout')")
    assert waits == "2s"


async def test_a_statement_over_its_limit_is_a_failure(bench: Bench) -> None:
    handler = Handler(Note, sleeping, statement_timeout=SHORT)
    outcome = await bench.run(handler, await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert "statement timeout" in outcome.error


async def test_a_lock_the_handler_doesnt_get_within_its_limit_is_a_failure(bench: Bench, other: Bench) -> None:
    async def locking(job: Note, session: AsyncSession) -> None:
        await session.execute(text("update balance set cents = 0 where id = 1"))

    async with other.engine.begin() as person:
        await person.execute(text("select from balance where id = 1 for update"))
        outcome = await bench.run(Handler(Note, locking, lock_timeout=SHORT), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert "lock timeout" in outcome.error
    assert await bench.runs() == [("retrying", 1)]


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_the_handler_runs_in_its_isolation_level_and_leaves_none_behind(
    bench: Bench, isolation: Isolation
) -> None:
    async def looking(job: Note, session: AsyncSession) -> str:
        return await setting(session, "transaction_isolation")

    delivery = await bench.enqueued(Note())
    assert await bench.run(Handler(Note, looking, isolation=isolation), delivery) == Completed(isolation.lower())
    ((left,),) = await bench.all("select current_setting('transaction_isolation')")
    assert left == "read committed"
