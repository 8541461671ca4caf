"""Batches: many jobs of one name in one call and one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.contextvars import get_contextvars

from tests.runtime.bench import Bench, Grip, Note
from tests.support.types_asked import types_asked
from worker import gather, ledger
from worker.call import run_batch
from worker.delivery import Delivery
from worker.errors import Permanent
from worker.executor import Executor
from worker.handler import BatchHandler, bind
from worker.outcome import Completed, Dead, Duplicate, Released
from worker.reporting.log_observer import LogObserver
from worker.run import current_run, current_runs

Run = Callable[[Sequence[Note], AsyncSession], Awaitable[Sequence[object] | None]]
LONG = timedelta(seconds=10)


def batches_of(size: int, run: Run, **policy: Any) -> BatchHandler[Note]:
    """A handler whose batches begin when they are full, and no sooner."""
    return BatchHandler(Note, run, max_size=size, linger=LONG, **policy)


async def noting(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
    """One statement for all; the result is each job's own text."""
    texts = [job.text for job in jobs]
    await session.execute(text("insert into effect (note) select unnest(cast(:texts as text[]))"), {"texts": texts})
    return texts


async def enqueued(bench: Bench, count: int) -> list[Delivery]:
    return [await bench.enqueued(Note(text=str(number))) for number in range(count)]


async def test_many_jobs_are_one_call_and_one_transaction(bench: Bench) -> None:
    sizes: list[int] = []

    async def counting(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        sizes.append(len(jobs))
        return await noting(jobs, session)

    outcomes = await bench.run_all(batches_of(5, counting), await enqueued(bench, 5))
    assert outcomes == [Completed(str(number)) for number in range(5)]
    assert sizes == [5]
    assert await bench.effects() == ["0", "1", "2", "3", "4"]
    ((transactions,),) = await bench.all(
        "select count(distinct xmin::text) from (select xmin from worker.run union all select xmin from effect) as all_"
    )
    assert transactions == 1
    runs = await bench.all("select status, attempt, from_outbox, finished_at is not null, result from worker.run")
    assert sorted(runs) == [("completed", 0, True, True, str(number)) for number in range(5)]
    assert await bench.rows() == 0
    assert bench.told.attempts == [1] * 5
    assert bench.told.endings == [(Completed(str(number)), None) for number in range(5)]


async def test_no_connection_has_to_be_asked_about_types(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = types_asked(monkeypatch)
    direct, enqueued_ones = [bench.direct(Note(text=str(number))) for number in range(2)], await enqueued(bench, 2)
    outcomes = await bench.run_all(batches_of(4, noting), [*direct, *enqueued_ones])
    assert outcomes == [Completed("0"), Completed("1"), Completed("0"), Completed("1")]
    assert asked == []


async def test_a_batch_begins_when_its_first_job_has_waited_long_enough(bench: Bench) -> None:
    handler = replace(batches_of(500, noting), linger=timedelta(milliseconds=10))
    assert await bench.run_all(handler, await enqueued(bench, 3)) == [Completed("0"), Completed("1"), Completed("2")]
    ((transactions,),) = await bench.all("select count(distinct xmin::text) from worker.run")
    assert transactions == 1


async def test_more_jobs_than_fit_make_more_batches_which_may_run_at_once(bench: Bench) -> None:
    both = asyncio.Barrier(2)

    async def meeting(jobs: Sequence[Note], session: AsyncSession) -> None:
        assert len(jobs) == 2
        await both.wait()

    assert await bench.run_all(batches_of(2, meeting), await enqueued(bench, 4)) == [Completed()] * 4


async def test_a_batch_has_so_many_bytes_of_messages_at_most(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    async def counting(jobs: Sequence[Note], session: AsyncSession) -> None:
        sizes.append(len(jobs))

    deliveries = await enqueued(bench, 5)
    monkeypatch.setattr(gather, "MAX_BYTES", 2 * len(deliveries[0].message or b""))
    handler = replace(batches_of(500, counting), linger=timedelta(milliseconds=10))
    await bench.run_all(handler, deliveries)
    assert sorted(sizes) == [1, 2, 2]


async def test_one_job_is_a_batch_too(bench: Bench) -> None:
    handler = replace(batches_of(500, noting), linger=timedelta(0))
    assert await bench.run(handler, await bench.enqueued(Note(text="a"))) == Completed("a")
    assert await bench.run(handler, bench.direct(Note(text="b"))) == Completed("b")


async def test_direct_jobs_are_applied_once_too(bench: Bench) -> None:
    deliveries = [bench.direct(Note(text="direct")), *await enqueued(bench, 1)]
    handler = batches_of(2, noting)
    assert await bench.run_all(handler, deliveries) == [Completed("direct"), Completed("0")]
    assert await bench.run_all(handler, deliveries) == [Duplicate("direct"), Duplicate("0")]
    assert await bench.effects() == ["direct", "0"]


async def test_what_is_final_or_not_due_or_unknown_is_left_out(bench: Bench) -> None:
    deliveries = await enqueued(bench, 5)
    done, dead, waiting, gone, fresh = deliveries
    await bench.run_all(batches_of(1, noting), [done])
    for delivery, status, next_at in ((dead, "dead", None), (waiting, "retrying", "1 h")):
        await bench.all(
            "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt, error, next_at) "
            "select id, enqueued_ms, name, queue, :status, true, 2, 'Oh: no', "
            "now() + cast(cast(:next_at as text) as interval) from worker.outbox where id = :id",
            status=status,
            next_at=next_at,
            id=delivery.job_id,
        )
    await bench.all("delete from worker.outbox where id = :id", id=gone.job_id)
    outcomes = await bench.run_all(batches_of(5, noting), deliveries)
    assert outcomes[0] == Duplicate("0")
    assert outcomes[1] == Duplicate(None, failed="Oh: no")
    assert isinstance(outcomes[2], Released)
    assert timedelta(minutes=59) < outcomes[2].delay <= timedelta(hours=1)
    assert outcomes[3] == Duplicate(None)
    assert outcomes[4] == Completed("4")
    assert await bench.effects() == ["0", "4"]
    assert await bench.all("select id from worker.outbox") == [(waiting.job_id,)]
    assert fresh.job_id == (await bench.one("select id from worker.run where result = '\"4\"'")).id


async def test_one_that_was_tried_before_goes_on_counting(bench: Bench) -> None:
    deliveries = await enqueued(bench, 2)
    await bench.all(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt, error, next_at) "
        "select id, enqueued_ms, name, queue, 'retrying', true, 2, 'Oh: no', now() from worker.outbox where id = :id",
        id=deliveries[1].job_id,
    )
    attempts: list[int] = []

    async def looking(jobs: Sequence[Note], session: AsyncSession) -> None:
        attempts.extend(each.attempt for each in current_runs())

    assert await bench.run_all(batches_of(2, looking), deliveries) == [Completed()] * 2
    assert attempts == bench.told.attempts == [1, 3]
    assert await bench.all("select status, error, next_at from worker.run") == [("completed", None, None)] * 2


async def test_the_same_job_delivered_twice_at_once_has_one_effect(bench: Bench) -> None:
    one, two = await enqueued(bench, 2)
    outcomes = await bench.run_all(batches_of(2, noting), [one, one, two])
    assert sorted(map(type, outcomes), key=str) == [Completed, Completed, Duplicate]
    assert sorted(await bench.effects()) == ["0", "1"]


async def test_two_workers_with_the_same_jobs_at_once_have_one_effect_each(bench: Bench, other: Bench) -> None:
    deliveries = await enqueued(bench, 20)
    mine, theirs = await asyncio.gather(
        bench.run_all(batches_of(20, noting), deliveries),
        other.run_all(batches_of(20, noting), reversed(deliveries)),
    )
    outcomes = [*mine, *theirs]
    assert sum(isinstance(outcome, Completed) for outcome in outcomes) == 20
    assert sum(isinstance(outcome, Duplicate) for outcome in outcomes) == 20
    assert sorted(await bench.effects(), key=int) == [str(number) for number in range(20)]


async def test_the_first_keeps_its_slot_and_the_others_leave_theirs(bench: Bench) -> None:
    deliveries = await enqueued(bench, 3)
    grips = [Grip() for _ in deliveries]
    held = [replace(delivery, hold=grip) for delivery, grip in zip(deliveries, grips, strict=True)]
    await bench.run_all(batches_of(3, noting, timeout=timedelta(seconds=7)), held)
    assert [grip.shares for grip in grips] == [False, True, True]
    assert [grip.begun for grip in grips] == [[LONG, timedelta(seconds=7)]] * 3  # each keeps its own lease


async def test_a_batch_handler_is_told_its_runs(bench: Bench) -> None:
    told: list[tuple[str, str]] = []

    async def looking(jobs: Sequence[Note], session: AsyncSession) -> None:
        told.extend((each.job_id, job.text) for each, job in zip(current_runs(), jobs, strict=True))
        with pytest.raises(RuntimeError, match=r"current_run\(\) was called in a batch handler.*use current_runs\(\)"):
            current_run()

    deliveries = await enqueued(bench, 3)
    await bench.run_all(batches_of(2, looking), deliveries[:2])
    await bench.run_all(batches_of(1, looking), deliveries[2:])
    assert told == [(delivery.job_id, str(number)) for number, delivery in enumerate(deliveries)]
    with pytest.raises(RuntimeError, match=r"current_runs\(\) was called outside a handler"):
        current_runs()


@pytest.mark.parametrize(
    ("direct", "precision", "is_marked_again"), [(True, 3600.0, False), (True, 0.0, True), (False, 3600.0, True)]
)
async def test_new_direct_runs_without_a_result_are_marked_done_by_the_statement_that_begins_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, precision: float, *, direct: bool, is_marked_again: bool
) -> None:
    async def silent(jobs: Sequence[Note], session: AsyncSession) -> None:
        await noting(jobs, session)

    monkeypatch.setattr(ledger, "PRECISION_S", precision)
    deliveries = [bench.direct(Note()) for _ in range(3)] if direct else await enqueued(bench, 3)
    assert await bench.run_all(batches_of(3, silent), deliveries) == [Completed()] * 3
    runs = await bench.all("select distinct status, result, cmin::text <> '0', finished_at is not null from worker.run")
    assert runs == [("completed", None, is_marked_again, True)]
    assert await bench.rows() == 0


async def test_what_a_batch_logs_is_bound_to_no_single_job(bench: Bench) -> None:
    bound: list[dict[str, Any]] = []

    async def looking(jobs: Sequence[Note], session: AsyncSession) -> None:
        bound.append(get_contextvars())

    handlers = bind([batches_of(2, looking)])
    executor = Executor(handlers, bench.engine, LogObserver(), bench.availability, "a worker")
    await asyncio.gather(*(executor.execute(delivery) for delivery in await enqueued(bench, 2)))
    assert bound == [{}]


@pytest.mark.parametrize(
    ("returned", "told"),
    [([1], "1 results"), ([1, 2, 3], "3 results"), ("ab", "str"), ({"a": 1, "b": 2}, "dict"), (7, "int")],
)
async def test_results_that_are_not_one_for_each_job_are_refused(bench: Bench, returned: Any, told: str) -> None:
    async def wrong(jobs: Sequence[Note], session: AsyncSession) -> Any:
        return returned

    sentence = f"^The batch handler of note returned {told} for 2 jobs; return a sequence with a result for each"
    async with AsyncSession(bench.engine) as session:
        with pytest.raises(Permanent, match=sentence):
            await run_batch(batches_of(2, wrong), [Note(), Note()], session)


async def test_a_handler_whose_results_do_not_fit_makes_its_jobs_dead(bench: Bench) -> None:
    async def wrong(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        await noting(jobs, session)
        return []

    outcomes = await bench.run_all(batches_of(2, wrong), await enqueued(bench, 2))
    assert [type(outcome) for outcome in outcomes] == [Dead, Dead]
    assert await bench.effects() == []


async def test_a_result_that_is_too_large_spoils_its_own_job_alone(bench: Bench) -> None:
    async def telling(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        await noting(jobs, session)
        return ["x" * 100_000 if job.text == "1" else job.text for job in jobs]

    outcomes = await bench.run_all(batches_of(3, telling), await enqueued(bench, 3))
    assert [type(outcome) for outcome in outcomes] == [Completed, Dead, Completed]
    assert await bench.effects() == ["0", "2"]


async def test_the_handlers_limits_are_set_for_the_whole_transaction(bench: Bench) -> None:
    async def asking(jobs: Sequence[Note], session: AsyncSession) -> list[str]:
        limits = ("statement_timeout", "lock_timeout", "transaction_isolation")
        told = [(await session.execute(text(f"show {limit}"))).scalar_one() for limit in limits]
        return [" ".join(told)] * len(jobs)

    handler = batches_of(
        2,
        asking,
        statement_timeout=timedelta(seconds=11),
        lock_timeout=timedelta(seconds=12),
        isolation="REPEATABLE READ",
    )
    assert await bench.run_all(handler, await enqueued(bench, 2)) == [Completed("11s 12s repeatable read")] * 2
