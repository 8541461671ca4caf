"""Between its chunks a chunked job gives way: to a pause, to a database that is pressed, and to other jobs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from tests.runtime.bench import Bench, Count, Grip, effect
from tests.support.waiting import wait_until
from worker import pauses
from worker.brakes import BACK_OFF, Brakes
from worker.call import Work
from worker.chunk import Chunk, Step
from worker.database import plain_url
from worker.delivery import Delivery
from worker.errors import Snooze
from worker.executor import Executor
from worker.handler import ChunkedHandler, bind
from worker.outcome import BUSY, Completed, Outcome, Released, Yielded
from worker.overview import details
from worker.pauses import Kind
from worker.pressure import Ceiling
from worker.wire import Message

BOUNDLESS = Ceiling(timedelta(0), timedelta(0), 0)
OF_ANY_AGE = replace(BOUNDLESS, transaction_age=timedelta(microseconds=1))
ONE_WAITS = replace(BOUNDLESS, waiting_locks=1)
DONE = Completed({"counted": 3})

Meanwhile = Callable[[], Awaitable[object]]


def counting(in_second: Meanwhile | None = None, **policy: Any) -> ChunkedHandler[Count, int]:
    """Count from the cursor to `upto`, one a chunk; `in_second` is called in the second one."""

    async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        await effect(session, str(at))
        if in_second and at == 2:
            await in_second()
        return chunk.step(at if at < job.upto else None, done=1, total=job.upto, counts={"counted": 1})

    return ChunkedHandler(Count, count, cursor=int, **policy)


async def run(
    bench: Bench, delivery: Delivery, handler: ChunkedHandler[Count, int] | None = None, ceiling: Ceiling = BOUNDLESS
) -> Outcome:
    handlers = bind([handler or counting()])
    executor = Executor(handlers, bench.engine, bench.told, bench.availability, "the bench", ceiling=ceiling)
    await bench.due(delivery)
    return (await executor.execute(delivery)).outcome


async def reason_shown(bench: Bench, delivery: Delivery) -> str:
    """What `worker show` says of it; no failure is counted."""
    async with bench.engine.connect() as connection:
        found = await details(connection, delivery.job_id)
    assert found is not None
    assert (found.entry.status, found.entry.attempt, found.failures) == ("yielded", 0, ())
    return found.entry.error or ""


async def test_an_old_transaction_holds_it_back_and_its_end_lets_it_go_on(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    async with other.engine.connect() as connection:

        async def begin() -> None:
            await connection.execute(text("select 1"))

        outcome = await run(bench, delivery, counting(begin), OF_ANY_AGE)
        assert isinstance(outcome, Yielded)
        assert outcome.delay == BACK_OFF
        assert await bench.effects() == ["1", "2"]
        assert "held back: a transaction has been open for" in await reason_shown(bench, delivery)
        assert isinstance(await run(bench, delivery, ceiling=OF_ANY_AGE), Yielded)
        assert await bench.effects() == ["1", "2"]  # not even one more
    assert await run(bench, delivery, ceiling=OF_ANY_AGE) == DONE
    assert (await bench.run_of(delivery)).error is None


@asynccontextmanager
async def waiting_for_a_row(other: Bench, backends: int) -> AsyncGenerator[None]:
    """One transaction has a row, and so many others wait for it."""
    await other.all("insert into taken values ('it')")
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(other.engine.connect()) for _ in range(1 + backends)]
        query = text("select * from taken for update")
        for each in connections:  # the engine's own would end the wait
            await each.execute(text("set local lock_timeout = 0"))
        await connections[0].execute(query)

        async def wait(connection: AsyncConnection) -> None:
            await connection.execute(query)
            await connection.rollback()

        tasks = [asyncio.create_task(wait(each)) for each in connections[1:]]

        async def all_wait() -> bool:
            waiting = await other.one("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
            return int(waiting[0]) == backends

        await wait_until(all_wait)
        try:
            yield
        finally:
            await connections[0].rollback()
            await asyncio.gather(*tasks)


async def test_waiting_locks_hold_it_back(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    async with waiting_for_a_row(other, 2):
        outcome = await run(bench, delivery, ceiling=ONE_WAITS)
        assert isinstance(outcome, Yielded)
        assert outcome.reason == "2 backends wait for a lock, more than 1 (WORKER_MAX_WAITING_LOCKS)"
        assert outcome.reason in await reason_shown(bench, delivery)
        assert await bench.effects() == []
    assert await run(bench, delivery, ceiling=ONE_WAITS) == DONE


async def test_its_own_transactions_are_not_those_it_waits_for(bench: Bench) -> None:
    assert await run(bench, await bench.enqueued(Count(upto=3)), ceiling=OF_ANY_AGE) == DONE


async def test_a_failure_that_was_counted_still_is_when_it_was_held_back(bench: Bench, other: Bench) -> None:
    async def fail() -> None:
        raise ValueError

    delivery = await bench.enqueued(Count(upto=3))
    await run(bench, delivery, counting(fail))
    async with other.engine.connect() as connection:
        await connection.execute(text("select 1"))
        assert isinstance(await run(bench, delivery, ceiling=OF_ANY_AGE), Yielded)
    assert await bench.runs() == [("yielded", 1)]


@pytest.mark.parametrize(("kind", "name"), [("queue", "arq:queue"), ("name", "count")])
async def test_a_pause_holds_after_the_chunk_that_runs_and_a_resume_lets_it_go_on(
    bench: Bench, other: Bench, kind: Kind, name: str
) -> None:
    delivery = await bench.enqueued(Count(upto=3))

    async def pause() -> None:
        await pauses.pause(other.engine, kind, name)

    assert await run(bench, delivery, counting(pause)) == Yielded(
        BUSY, "count or the queue arq:queue is paused", has_committed=False
    )
    assert await bench.effects() == ["1", "2"]
    assert "paused" in await reason_shown(bench, delivery)
    await pauses.resume(other.engine, kind, name)
    assert await run(bench, delivery) == DONE


async def test_a_direct_job_that_is_held_back_before_its_first_chunk_is_the_outboxs(bench: Bench) -> None:
    delivery = bench.direct(Count(upto=3))
    await pauses.pause(bench.engine, "name", "count")
    assert isinstance(await run(bench, delivery), Yielded)
    assert (await bench.runs(), await bench.rows()) == ([("yielded", 0)], 1)
    await pauses.resume(bench.engine, "name", "count")
    assert await run(bench, delivery) == DONE


async def test_it_gives_up_its_slot_after_yield_after_and_goes_to_the_end(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    brief = counting(yield_after=timedelta(0))
    to_the_end = Yielded(timedelta(0), "others have their turn")
    assert [await run(bench, delivery, brief) for _ in range(3)] == [to_the_end, to_the_end, DONE]
    assert await bench.effects() == ["1", "2", "3"]


async def test_the_first_chunk_is_no_part_of_its_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that has to find its place anew, for longer than the turn, no turn would have another chunk."""
    now = 0.0

    async def take(job: Count, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        nonlocal now
        at = (chunk.cursor or 0) + 1
        now += 60 if at == 1 else 20
        return chunk.step(at if at < job.upto else None)

    monkeypatch.setattr("worker.attempt.time", SimpleNamespace(monotonic=lambda: now))
    handler = ChunkedHandler(Count, take, cursor=int, yield_after=timedelta(seconds=30))
    delivery = await bench.enqueued(Count(upto=5))
    assert isinstance(await run(bench, delivery, handler), Yielded)
    assert (await bench.run_of(delivery)).chunks == 3


async def test_the_size_adapts_and_is_kept_while_the_job_waits(bench: Bench) -> None:
    sizes: list[int] = []

    async def take(_job: Count, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        sizes.append(chunk.size)
        return chunk.step((chunk.cursor or 0) + chunk.size if len(sizes) < 4 else None, done=chunk.size, total=999)

    # A target that no chunk comes near: each is 1.2 times the one before.
    handler = ChunkedHandler(Count, take, cursor=int, size=100, target=timedelta(hours=1), yield_after=timedelta(0))
    delivery = await bench.enqueued(Count())
    for _ in range(4):
        await run(bench, delivery, handler)
    assert sizes == [100, 120, 144, 172]
    kept = await bench.run_of(delivery)
    assert (kept.chunks, kept.done, kept.total, kept.chunk_size) == (4, 536, 999, 206)
    assert kept.rate > 0
    assert kept.time_left_s == pytest.approx((999 - 536) / kept.rate)


async def test_the_size_goes_by_the_rows_that_were_read_ahead(bench: Bench) -> None:
    async def take(_job: Count, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(1, done=50, asked=50)

    handler = ChunkedHandler(Count, take, cursor=int, size=100, target=timedelta(hours=1), yield_after=timedelta(0))
    delivery = await bench.enqueued(Count())
    await run(bench, delivery, handler)
    assert (await bench.run_of(delivery)).chunk_size == 60


async def test_what_a_chunk_took_for_other_than_its_rows_is_no_part_of_the_pace(bench: Bench) -> None:
    async def take(_job: Count, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(1, done=100, apart=timedelta(hours=1))  # so long that nothing is left

    handler = ChunkedHandler(Count, take, cursor=int, size=100, yield_after=timedelta(0))
    delivery = await bench.enqueued(Count())
    await run(bench, delivery, handler)
    assert (await bench.run_of(delivery)).rate == pytest.approx(100 / 1e-6)


async def test_a_role_without_pg_monitor_is_told_less_and_nothing_fails(bench: Bench, shared_url: str) -> None:
    await bench.all("create role plain login")
    await bench.all("grant usage on schema worker to plain")
    await bench.all("grant select on worker.pause, worker.run to plain")
    url = plain_url(shared_url)
    engine = ordinary(url)
    try:
        message = Message("count", b"{}", 0, from_outbox=True)
        work = Work(bench.delivery(None, hold=Grip()), b"", message, counting(), Count())
        async with bench.engine.connect() as connection:
            await connection.execute(text("select 1"))
            assert await Brakes(engine, OF_ANY_AGE).look(work) is None  # another role's, so nothing is told of it
    finally:
        await engine.dispose()
        await bench.all("drop owned by plain")
        await bench.all("drop role plain")


def ordinary(url: str) -> AsyncEngine:
    """Connect as an ordinary role."""
    return create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"), connect_args={"server_settings": {"role": "plain"}}
    )


@pytest.mark.parametrize("raised", [Snooze(timedelta(days=1)), RuntimeError("the other side is down")], ids=repr)
async def test_what_holds_a_job_back_makes_no_wait_of_its_own_shorter(bench: Bench, raised: Exception) -> None:
    """The worker was killed when it had written the wait, and Redis didn't know of it: the message comes again."""

    async def wait(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        raise raised

    handler = ChunkedHandler(Count, wait, cursor=int)
    delivery = await bench.enqueued(Count())
    await bench.run(handler, delivery)
    await bench.all("update worker.run set next_at = now() + interval '1 day' where id = :id", id=delivery.job_id)
    before = await bench.run_of(delivery)
    await pauses.pause(bench.engine, "name", "count")
    try:
        assert isinstance(await bench.run(handler, delivery), Released)
    finally:
        await pauses.resume(bench.engine, "name", "count")
    after = await bench.run_of(delivery)
    assert (after.next_at, after.status) == (before.next_at, before.status)
