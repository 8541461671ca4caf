"""What spoils a batch: it is halved until the bad jobs stand alone, and they end as they would have by themselves."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Grip, Note, slow_commit
from tests.runtime.postgres_proxy import COMMIT_SENT, COMMITTED, PostgresProxy
from tests.runtime.test_batches import LONG, batches_of, enqueued, noting
from tests.support.waiting import wait_until
from worker.attempt import IMMEDIATE_RETRIES
from worker.batch_transaction import BatchTransactor, Share
from worker.call import Work
from worker.delivery import Delivery
from worker.errors import Cancel, Permanent, Snooze
from worker.outcome import BUSY, Cancelled, Completed, Dead, Duplicate, Released, Retrying, Snoozed
from worker.retry import RetryPolicy

BAD = "3"

Spoil = Callable[[AsyncSession], Awaitable[None]]


async def raising(session: AsyncSession) -> None:
    raise ValueError


async def hopeless(session: AsyncSession) -> None:
    raise Permanent("no")


async def snoozing(session: AsyncSession) -> None:
    raise Snooze(timedelta(minutes=5))


async def cancelling(session: AsyncSession) -> None:
    raise Cancel("not wanted")


async def swallowing(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await session.execute(text("select 1 / 0"))


async def hanging(session: AsyncSession) -> None:
    await asyncio.Event().wait()


async def committing(session: AsyncSession) -> None:
    await session.commit()


async def sharing(session: AsyncSession) -> None:
    with suppress(Exception):
        await asyncio.gather(session.execute(text("select 1")), session.execute(text("select 2")))


@pytest.mark.parametrize(
    ("spoil", "ending", "status", "failures"),
    [
        (raising, Retrying, "retrying", 1),
        (hopeless, Dead, "dead", 1),
        (snoozing, Snoozed, "snoozed", 0),
        (cancelling, Cancelled, "cancelled", 0),
        (swallowing, Retrying, "retrying", 1),
        (hanging, Retrying, "retrying", 1),
        (committing, Retrying, "retrying", 1),
        (sharing, Retrying, "retrying", 1),
    ],
)
async def test_one_that_spoils_its_batch_ends_alone_and_the_others_commit(
    bench: Bench, spoil: Spoil, ending: type, status: str, failures: int
) -> None:
    sizes: list[int] = []

    async def spoilt(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        sizes.append(len(jobs))
        results = await noting(jobs, session)
        if BAD in results:
            await spoil(session)
        return results

    handler = batches_of(8, spoilt, timeout=timedelta(seconds=0.3 if spoil is hanging else 60))
    deliveries = await enqueued(bench, 8)
    outcomes = await bench.run_all(handler, deliveries)
    good = [number for number in range(8) if str(number) != BAD]
    assert [outcomes[number] for number in good] == [Completed(str(number)) for number in good]
    assert isinstance(outcomes[int(BAD)], ending)
    assert sizes == [8, 4, 2, 2, 1, 1, 4]  # from left to right
    assert sorted(await bench.effects()) == [str(number) for number in good]
    run = await bench.run_of(deliveries[int(BAD)])
    assert (run.status, run.attempt) == (status, failures)
    assert len(await bench.all("select * from worker.attempt")) == failures
    assert await bench.all("select distinct status, attempt from worker.run where id <> :id", id=run.id) == [
        ("completed", 0)
    ]
    assert bench.told.attempts == [1] * 8  # each began once, as far as anybody was told


@pytest.mark.parametrize("statement", ["commit", "commit and chain"])
@pytest.mark.parametrize("direct", [True, False])
async def test_a_batch_that_commits_unseen_and_fails_is_not_done(bench: Bench, statement: str, *, direct: bool) -> None:
    """What it has committed stays; each job is dead with a sentence, since each would do it again."""

    async def committing(jobs: Sequence[Note], session: AsyncSession) -> None:
        raw: Any = await (await session.connection()).get_raw_connection()
        await raw.driver_connection.execute(f"select 1; {statement}")
        raise ValueError("half of the work is missing")

    deliveries = [bench.direct(Note(text=str(n))) for n in range(3)] if direct else await enqueued(bench, 3)
    outcomes = await bench.run_all(batches_of(3, committing), deliveries)
    assert [type(outcome) for outcome in outcomes] == [Dead] * 3
    assert await bench.runs() == [("dead", 1)] * 3


async def test_all_of_them_may_be_bad(bench: Bench) -> None:
    async def failing(jobs: Sequence[Note], session: AsyncSession) -> None:
        raise ValueError(jobs[0].text)

    handler = batches_of(5, failing, retry=RetryPolicy(attempts=2, base=timedelta(0)))
    deliveries = await enqueued(bench, 5)
    first = await bench.run_all(handler, deliveries)
    second = await bench.run_all(handler, deliveries)
    assert [type(outcome) for outcome in first] == [Retrying] * 5
    assert second == [Dead(f"ValueError: {number}") for number in range(5)]
    assert await bench.runs() == [("dead", 2)] * 5
    assert len(await bench.all("select * from worker.attempt")) == 10


async def test_a_commit_that_is_refused_is_a_failure_of_the_batch(own: Bench) -> None:
    await own.all("create table late (taken int unique deferrable initially deferred)")

    async def breaking(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        for job in jobs:
            await session.execute(text("insert into late values (:n)"), {"n": int(job.text) // 2 * 2})
        return await noting(jobs, session)

    outcomes = await own.run_all(batches_of(2, breaking), await enqueued(own, 2))
    assert sorted(map(type, outcomes), key=str) == [Completed, Retrying]
    assert await own.effects() == ["0"]


async def test_one_whose_run_is_held_elsewhere_does_not_hold_up_the_others(
    bench: Bench, other: Bench, impatient: None
) -> None:
    del impatient
    deliveries = await enqueued(bench, 4)
    held = deliveries[2].job_id
    await bench.all(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox) "
        "select id, enqueued_ms, name, queue, 'waiting', true from worker.outbox where id = :id",
        id=held,
    )
    grips = [Grip(ours=False) for _ in deliveries]
    async with other.engine.begin() as holder:
        await holder.execute(text("select from worker.run where id = :id for update"), {"id": held})
        outcomes = await bench.run_all(batches_of(4, noting), with_grips(deliveries, grips))
    assert [type(outcome) for outcome in outcomes] == [Completed, Completed, Released, Completed]
    assert await bench.effects() == ["0", "1", "3"]
    assert ("waiting", 0) in await bench.runs()


async def test_one_whose_run_is_being_made_elsewhere_is_waited_for_and_then_stands_alone(
    bench: Bench, other: Bench, impatient: None
) -> None:
    del impatient
    deliveries = await enqueued(bench, 4)
    grips = [Grip(ours=False) for _ in deliveries]
    async with other.engine.begin() as holder:
        await holder.execute(
            text(
                "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox) "
                "select id, enqueued_ms, name, queue, 'waiting', true from worker.outbox where id = :id"
            ),
            {"id": deliveries[2].job_id},
        )
        outcomes = await bench.run_all(batches_of(4, noting), with_grips(deliveries, grips))
    assert [type(outcome) for outcome in outcomes] == [Completed, Completed, Released, Completed]
    assert await bench.effects() == ["0", "1", "3"]


async def test_a_zombies_whole_batch_is_taken_over(bench: Bench, other: Bench, impatient: None) -> None:
    """A stopped worker holds the runs of all; it is ended by the first of them that stands alone."""
    del impatient
    began = asyncio.Event()

    async def stuck(jobs: Sequence[Note], session: AsyncSession) -> None:
        await noting(jobs, session)
        began.set()
        await asyncio.Event().wait()

    deliveries = await enqueued(bench, 4)
    lost = with_grips(deliveries, [Grip(ours=False) for _ in deliveries])
    zombie = asyncio.create_task(other.run_all(batches_of(4, stuck, timeout=timedelta(minutes=5)), lost))
    await began.wait()
    assert await bench.run_all(batches_of(4, noting), deliveries) == [Completed(str(n)) for n in range(4)]
    zombie.cancel()
    await asyncio.gather(zombie, return_exceptions=True)
    assert sorted(await bench.effects()) == ["0", "1", "2", "3"]


async def test_a_conflict_is_tried_again_at_once_as_a_whole(bench: Bench) -> None:
    sizes: list[int] = []

    async def losing(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        await session.execute(text("select cents from balance where id = 1"))
        if len(sizes) < IMMEDIATE_RETRIES:
            await bench.all("update balance set cents = cents - 1 where id = 1")
        sizes.append(len(jobs))
        await session.execute(text("update balance set cents = cents - 10 where id = 1"))
        return await noting(jobs, session)

    handler = batches_of(4, losing, isolation="REPEATABLE READ")
    assert await bench.run_all(handler, await enqueued(bench, 4)) == [Completed(str(n)) for n in range(4)]
    assert sizes == [4] * (1 + IMMEDIATE_RETRIES)
    assert await bench.all("select cents from balance where id = 1") == [(87,)]
    assert await bench.runs() == [("completed", 0)] * 4


async def test_a_pool_that_is_all_taken_puts_the_batch_back_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = [bench.direct(Note(text=str(n))) for n in range(4)]
    monkeypatch.setattr(bench.engine.pool, "_timeout", 0.01)
    async with AsyncExitStack() as taken:
        with suppress(PoolTimeout):
            while not (await taken.enter_async_context(bench.engine.connect())).closed:
                pass
        tries: list[int] = []
        carry_out = BatchTransactor.carry_out

        async def counting(self: BatchTransactor, works: Sequence[Work], on_begun: Callable[[], None]) -> list[Share]:
            tries.append(len(works))
            return await carry_out(self, works, on_begun)

        monkeypatch.setattr(BatchTransactor, "carry_out", counting)
        outcomes = await bench.run_all(batches_of(4, noting), deliveries)
        assert outcomes == [Released("no connection is free", BUSY)] * 4
        assert tries == [4]


async def test_a_conflict_that_does_not_end_halves_the_batch(bench: Bench) -> None:
    sizes: list[int] = []

    async def losing(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        await session.execute(text("select cents from balance where id = 1"))
        sizes.append(len(jobs))
        if len(jobs) > 1:
            await bench.all("update balance set cents = cents - 1 where id = 1")
        await session.execute(text("update balance set cents = cents - 10 where id = 1"))
        return await noting(jobs, session)

    handler = batches_of(2, losing, isolation="SERIALIZABLE")
    assert await bench.run_all(handler, await enqueued(bench, 2)) == [Completed("0"), Completed("1")]
    assert sizes == [*[2] * (1 + IMMEDIATE_RETRIES), 1, 1]
    assert await bench.runs() == [("completed", 0)] * 2


async def test_a_lost_connection_is_tried_again_at_once_as_a_whole(bench: Bench) -> None:
    sizes: list[int] = []

    async def losing(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        sizes.append(len(jobs))
        if len(sizes) == 1:
            await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))
        return await noting(jobs, session)

    assert await bench.run_all(batches_of(3, losing), await enqueued(bench, 3)) == [Completed(str(n)) for n in range(3)]
    assert sizes == [3, 3]
    assert await bench.runs() == [("completed", 0)] * 3


@pytest.mark.parametrize("came_through", [True, False])
async def test_a_connection_lost_in_the_commit_leaves_the_fate_to_be_read(
    far: Bench, bench: Bench, proxy: PostgresProxy, *, came_through: bool
) -> None:
    calls: list[int] = []

    async def cutting(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        if not calls and came_through:
            proxy.cut_after = COMMITTED
        elif not calls:
            proxy.cut_before = COMMIT_SENT
        calls.append(len(jobs))
        return await noting(jobs, session)

    deliveries = await enqueued(bench, 3)
    assert await far.run_all(batches_of(3, cutting), deliveries) == [Completed(str(n)) for n in range(3)]
    assert proxy.cuts == 1
    assert calls == [3] if came_through else [3, 3]
    assert await bench.effects() == ["0", "1", "2"]
    assert await bench.runs() == [("completed", 0)] * 3


async def test_while_postgresql_is_away_all_are_put_back_and_nothing_counts(
    far: Bench, bench: Bench, proxy: PostgresProxy
) -> None:
    async def losing_it(jobs: Sequence[Note], session: AsyncSession) -> None:
        await proxy.stop()
        await noting(jobs, session)

    deliveries = await enqueued(bench, 4)
    outcomes = await far.run_all(batches_of(4, losing_it), deliveries)
    assert outcomes == [Released("PostgreSQL is away", timedelta(seconds=1))] * 4
    assert await bench.runs() == []
    await proxy.start()
    await asyncio.wait_for(far.availability.wait(), 10)
    assert await far.run_all(batches_of(4, noting), deliveries) == [Completed(str(n)) for n in range(4)]


async def test_a_fault_of_the_runtime_is_told_once_and_all_are_put_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken() -> bool:
        raise AttributeError("a bug")

    async def losing(jobs: Sequence[Note], session: AsyncSession) -> None:
        await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    monkeypatch.setattr(bench.availability, "check", broken)
    outcomes = await bench.run_all(batches_of(3, losing), await enqueued(bench, 3))
    assert outcomes == [Released("the runtime failed", timedelta(seconds=5))] * 3
    assert [str(fault) for fault in bench.told.faults] == ["a bug"]


# --- cancellation -----------------------------------------------------------------------------------------------------


class Running:
    """A batch in its handler, and the tasks of its deliveries."""

    def __init__(self, bench: Bench, deliveries: Sequence[Delivery], grips: Sequence[Grip]) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.sizes: list[int] = []
        self._grips = grips
        executor = bench.executor(batches_of(len(deliveries), self._wait))
        self.tasks = [asyncio.create_task(executor.execute(each)) for each in with_grips(deliveries, grips)]

    async def _wait(self, jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        self.sizes.append(len(jobs))
        await noting(jobs, session)
        self.reached.set()
        await self.opened.wait()
        return [job.text for job in jobs]

    def abort(self) -> None:
        for grip, task in zip(self._grips, self.tasks, strict=True):
            grip.aborted = True
            task.cancel()

    def stop(self) -> None:
        for grip, task in zip(self._grips, self.tasks, strict=True):
            grip.stopping = True
            task.cancel()

    async def outcomes(self) -> list[object]:
        return [(await task).outcome for task in self.tasks]


def with_grips(deliveries: Sequence[Delivery], grips: Sequence[Grip]) -> list[Delivery]:
    return [
        Delivery(each.job_id, each.queue, each.message, grip, each.delivered_ms, each.due_ms)
        for each, grip in zip(deliveries, grips, strict=True)
    ]


async def test_a_worker_that_stops_rolls_the_batch_back_and_puts_all_back(bench: Bench) -> None:
    grips = [Grip() for _ in range(3)]
    running = Running(bench, await enqueued(bench, 3), grips)
    await running.reached.wait()
    running.stop()
    assert await running.outcomes() == [Released("the worker stops")] * 3
    assert await bench.effects() == []
    assert await bench.runs() == []


async def test_a_worker_that_stops_while_a_batch_gathers_puts_all_back(bench: Bench) -> None:
    executor = bench.executor(batches_of(500, noting))
    tasks = [asyncio.create_task(executor.execute(each)) for each in await enqueued(bench, 2)]
    await asyncio.sleep(0)  # they have joined
    for task in tasks:
        task.cancel()
    assert [(await task).outcome for task in tasks] == [Released("the worker stops")] * 2


async def test_nobody_joins_a_batch_that_was_cancelled_while_it_gathered(bench: Bench) -> None:
    executor = bench.executor(batches_of(2, noting))
    first, *others = await enqueued(bench, 3)
    left = asyncio.create_task(executor.execute(first))
    await asyncio.sleep(0)  # it gathers
    left.cancel()
    assert (await left).outcome == Released("the worker stops")
    async with asyncio.timeout(LONG.total_seconds()):
        reports = await asyncio.gather(*(executor.execute(each) for each in others))
    assert [report.outcome for report in reports] == [Completed("1"), Completed("2")]


async def test_a_commit_under_way_is_not_cancelled(bench: Bench) -> None:
    async def slow(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        await slow_commit(session, 1)
        return await noting(jobs, session)

    executor = bench.executor(batches_of(2, slow))
    async with bench.locked(1):
        tasks = [asyncio.create_task(executor.execute(each)) for each in await enqueued(bench, 2)]
        await wait_until(bench.is_waiting)
        for task in tasks:
            task.cancel()
    assert [(await task).outcome for task in tasks] == [Completed("0"), Completed("1")]
    assert await bench.effects() == ["0", "1"]


async def test_a_batch_whose_members_were_all_aborted_is_rolled_back_when_the_worker_stops(bench: Bench) -> None:
    grips = [Grip() for _ in range(3)]
    running = Running(bench, await enqueued(bench, 3), grips)
    await running.reached.wait()
    running.abort()
    await asyncio.sleep(0)
    running.stop()
    async with asyncio.timeout(LONG.total_seconds()):
        await running.outcomes()
    assert await bench.effects() == []


@pytest.mark.parametrize("place", [0, 1])
async def test_an_abort_of_one_comes_too_late_once_its_batch_is_under_way(bench: Bench, place: int) -> None:
    grips = [Grip() for _ in range(3)]
    running = Running(bench, await enqueued(bench, 3), grips)
    await running.reached.wait()
    grips[place].aborted = True
    running.tasks[place].cancel()
    await asyncio.sleep(0)
    running.opened.set()
    assert await running.outcomes() == [Completed("0"), Completed("1"), Completed("2")]


@pytest.mark.parametrize("place", [0, 1])
async def test_one_that_is_aborted_while_its_batch_gathers_is_cancelled_and_the_others_go_on(
    bench: Bench, place: int
) -> None:
    grips = [Grip() for _ in range(3)]
    deliveries = with_grips(await enqueued(bench, 3), grips)
    executor = bench.executor(batches_of(3, noting))
    tasks = [asyncio.create_task(executor.execute(each)) for each in deliveries[:2]]
    await asyncio.sleep(0)
    grips[place].aborted = True
    tasks[place].cancel()
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(executor.execute(deliveries[2])))
    outcomes = [(await task).outcome for task in tasks]
    assert outcomes.pop(place) == Cancelled("aborted")
    assert all(isinstance(outcome, Completed) for outcome in outcomes)
    assert len(await bench.effects()) == 2
    assert await bench.rows() == 0


async def test_the_first_job_ends_when_all_have_since_the_slot_is_its_own(bench: Bench) -> None:
    seen: list[tuple[list[str], list[bool]]] = []

    async def spoilt(jobs: Sequence[Note], session: AsyncSession) -> None:
        texts = [job.text for job in jobs]
        seen.append((texts, [task.done() for task in tasks]))
        if "1" in texts:
            raise Permanent("no")

    executor = bench.executor(batches_of(4, spoilt))
    tasks = [asyncio.create_task(executor.execute(each)) for each in await enqueued(bench, 4)]
    assert [type((await task).outcome) for task in tasks] == [Completed, Dead, Completed, Completed]
    assert seen[-1] == (["2", "3"], [False, True, False, False])


async def test_leases_of_all_that_wait_are_extended_by_every_transaction_of_the_batch(bench: Bench) -> None:
    async def spoilt(jobs: Sequence[Note], session: AsyncSession) -> None:
        if jobs[0].text == "0":
            raise ValueError

    grips = [Grip() for _ in range(4)]
    timeout = timedelta(seconds=30)
    outcomes = await bench.run_all(batches_of(4, spoilt, timeout=timeout), with_grips(await enqueued(bench, 4), grips))
    assert [type(outcome) for outcome in outcomes] == [Retrying, Completed, Completed, Completed]
    alone = timeout * (1 + IMMEDIATE_RETRIES)
    # While they gather; then the batch, its left half, each of that half alone (and its own attempt), the right half.
    assert grips[0].begun == [LONG, timeout, timeout, alone, timeout, alone, timeout]
    assert grips[1].begun == [LONG, timeout, timeout, alone, alone, timeout]
    assert grips[2].begun == grips[3].begun == [LONG, timeout, timeout, alone, alone, timeout]


async def test_duplicates_of_a_batch_take_their_rows_away(bench: Bench) -> None:
    deliveries = await enqueued(bench, 2)
    await bench.run_all(batches_of(2, noting), deliveries)
    await bench.all(
        "insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch) "
        "select id, enqueued_ms, name, queue, '', 1 from worker.run"
    )
    assert await bench.run_all(batches_of(2, noting), deliveries) == [Duplicate("0"), Duplicate("1")]
    assert await bench.rows() == 0
