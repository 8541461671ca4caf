"""A chunked job in partitions: each goes through its part of the keys, and the whole completes when all have."""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, effect
from worker.cancel import cancel
from worker.chunk import Chunk, Step
from worker.delivery import Delivery
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.limits import Rate
from worker.operations import Done, WrongStatusError, discard, discard_all, replay, replay_all
from worker.outbox import enqueue
from worker.outcome import OFFER_AGAIN, Cancelled, Completed, Dead, Duplicate, Released, Retrying, Yielded
from worker.overview import details
from worker.partitions import CARRY_ON, LOOK_AGAIN, NO_CHUNKS
from worker.reporting.trace import CRON_HEADER
from worker.retry import RetryPolicy
from worker.wire import Message, decode

ONCE = RetryPolicy(attempts=1)
PARTED, NOT_YET = Yielded(LOOK_AGAIN, CARRY_ON), Released(CARRY_ON, LOOK_AGAIN, clears=True)
Meanwhile = Callable[[int], Awaitable[object]]


async def thirds(job: Count, _session: AsyncSession, partitions: int) -> Sequence[int]:
    return [job.upto * number // partitions for number in range(1, partitions)]


def noting(meanwhile: Meanwhile | None = None, **policy: Any) -> ChunkedHandler[Count, int]:
    """Note the numbers from 1 to `upto`, two a chunk; `meanwhile` is called with the first one of each chunk."""

    async def note(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        after = chunk.lower if chunk.cursor is None else chunk.cursor
        last = job.upto if chunk.upper is None else chunk.upper
        numbers = range((after or 0) + 1, min(last, (after or 0) + chunk.size) + 1)
        for number in numbers:
            await effect(session, str(number))
        if meanwhile:
            await meanwhile(numbers[0])
        end = numbers[-1] if numbers else last
        counts = {"noted": len(numbers), "sum": sum(numbers)}
        return chunk.step(
            end if end < last else None, done=len(numbers), total=last - (chunk.lower or 0), counts=counts
        )

    given: dict[str, Any] = {"partitions": 3, "split": thirds, "retry": ONCE, **policy}
    return ChunkedHandler(Count, note, cursor=int, size=2, target=None, **given)


def failing_at(*numbers: int) -> Meanwhile:
    async def fail(at: int) -> None:
        if at in numbers:
            raise ValueError(at)

    return fail


def nine() -> list[str]:
    return [str(number) for number in range(1, 10)]


async def parted(bench: Bench, handler: ChunkedHandler[Count, int]) -> tuple[Delivery, list[Delivery]]:
    """A job that was split, and its partitions, as they come from the outbox."""
    parent = await bench.enqueued(Count(upto=9))
    assert await bench.run(handler, parent) == PARTED
    rows = await bench.all("select id, message from worker.outbox where id <> :id order by seq", id=parent.job_id)
    return parent, [bench.delivery(message, job_id=job_id) for job_id, message in rows]


async def noted(bench: Bench) -> list[str]:
    return sorted(await bench.effects(), key=int)


async def state(bench: Bench) -> list[tuple[str, str]]:
    """Of the parent, then of the partitions."""
    return [tuple(row) for row in await bench.all("select id, status from worker.run order by length(id), id")]


async def statuses(bench: Bench) -> list[str]:
    return [status for _, status in await state(bench)]


async def test_the_range_is_split_and_each_row_is_worked_on_once(bench: Bench) -> None:
    handler = noting()
    parent, parts = await parted(bench, handler)
    assert [part.job_id for part in parts] == [f"{parent.job_id}:{number}" for number in (1, 2, 3)]
    runs = await bench.all(
        "select enqueued_ms, parent_id, bounds from worker.run where parent_id is not null order by id"
    )
    ((enqueued_ms,),) = await bench.all("select enqueued_ms from worker.run where partitions = 3")
    assert runs == [(enqueued_ms, parent.job_id, bounds) for bounds in ([None, 3], [3, 6], [6, None])]
    assert await bench.run(handler, parent) == NOT_YET
    outcomes = [await bench.run(handler, part) for part in parts]
    assert outcomes == [Completed({"noted": 3, "sum": total}) for total in (6, 15, 24)]
    assert await bench.run(handler, parent) == Completed({"noted": 9, "sum": 45})
    run = await bench.run_of(parent)
    assert (run.status, run.done, run.total, run.result) == ("completed", 9, 9, {"noted": 9, "sum": 45})
    assert await noted(bench) == nine()
    assert await bench.rows() == 0
    assert await bench.run(handler, parent) == Duplicate({"noted": 9, "sum": 45})


async def test_a_bound_that_would_not_come_back_splits_nothing(bench: Bench) -> None:
    async def at_infinity(_job: Count, _session: AsyncSession, _partitions: int) -> Sequence[float]:
        return [math.inf]

    async def nothing(_job: Count, _session: AsyncSession, chunk: Chunk[float]) -> Step[float]:
        return chunk.step(None)

    handler = ChunkedHandler(Count, nothing, cursor=float, partitions=2, split=at_infinity)
    outcome = await bench.run(handler, await bench.enqueued(Count()))
    assert isinstance(outcome, Dead)
    assert "The handler's bound is a float" in outcome.error
    assert [status for _, status in await state(bench)] == ["dead"]


async def test_a_whole_number_among_the_results_of_a_partition_is_refused_since_it_would_be_added_up(
    bench: Bench,
) -> None:
    async def telling(_job: Count, _session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(None, counts={"n": 1}, result={"version": 7, "is_whole": True, "path": "x"})

    handler = ChunkedHandler(Count, telling, cursor=int, partitions=3, split=thirds, retry=ONCE)
    _, parts = await parted(bench, handler)
    outcome = await bench.run(handler, parts[0])
    assert isinstance(outcome, Dead)
    assert "has a whole number among its results, and partitions add those up" in outcome.error


async def test_looking_is_no_attempt_and_a_cron_monitor_hears_of_the_whole_job_alone(bench: Bench) -> None:
    handler = noting()
    async with AsyncSession(bench.engine) as session, session.begin():
        job_id = enqueue(session, Count(upto=9), headers={CRON_HEADER: "nightly", "sentry-trace": "a"})
    ((message,),) = await bench.all("update worker.outbox set sent_epoch = 1 returning message")
    parent = bench.delivery(message, job_id=job_id)
    await bench.run(handler, parent)
    before = list(bench.told.attempts)
    assert await bench.run(handler, parent) == NOT_YET
    assert bench.told.attempts == before
    sent = [decode(each) for (each,) in await bench.all("select message from worker.outbox where id <> :id", id=job_id)]
    assert [one.headers for one in sent if isinstance(one, Message)] == [{"sentry-trace": "a"}] * 3


async def test_they_may_run_at_the_same_time(bench: Bench) -> None:
    handler = noting()
    parent, parts = await parted(bench, handler)
    assert [type(outcome) for outcome in await bench.run_all(handler, parts)] == [Completed] * 3
    assert await bench.run(handler, parent) == Completed({"noted": 9, "sum": 45})
    assert await noted(bench) == nine()


async def test_each_partition_resumes_after_its_own_last_chunk(bench: Bench) -> None:
    retry = RetryPolicy(attempts=2, base=timedelta(0))
    parent, parts = await parted(bench, noting())
    failing = noting(failing_at(6), retry=retry)
    assert [type(await bench.run(failing, part)) for part in parts] == [Completed, Retrying, Completed]
    assert await bench.run(failing, parent) == NOT_YET
    assert await bench.run(noting(), parts[1]) == Completed({"noted": 3, "sum": 15})
    assert await bench.run(noting(), parent) == Completed({"noted": 9, "sum": 45})
    assert await noted(bench) == nine()


async def test_a_dead_partition_makes_the_job_dead_when_the_others_have_ended(bench: Bench) -> None:
    handler = noting(failing_at(6))
    parent, (first, second, third) = await parted(bench, handler)
    assert isinstance(await bench.run(handler, second), Dead)
    assert isinstance(await bench.run(handler, first), Completed)
    assert await bench.run(handler, parent) == NOT_YET
    assert isinstance(await bench.run(handler, third), Completed)
    outcome = await bench.run(handler, parent)
    error = f"Permanent: 1 of 3 partitions did not complete; {second.job_id} is dead: ValueError: 6"
    assert outcome == Dead(error)
    assert await statuses(bench) == ["dead", "completed", "dead", "completed"]
    assert await bench.rows() == 0


async def test_a_replay_runs_what_did_not_complete_from_its_cursor(bench: Bench) -> None:
    handler = noting(failing_at(6))
    parent, parts = await parted(bench, handler)
    for delivery in (*parts, parent):
        await bench.run(handler, delivery)
    with pytest.raises(WrongStatusError, match=f"is a partition; name the whole job, {parent.job_id}"):
        await replay(bench.engine, parts[1].job_id)
    assert await replay(bench.engine, parent.job_id) == Done(parent.job_id, "count")
    assert await statuses(bench) == ["waiting", "completed", "waiting", "completed"]
    assert [job_id for (job_id,) in await bench.all("select id from worker.outbox order by seq")] == [
        parent.job_id,
        parts[1].job_id,
    ]
    assert await bench.run(noting(), parent) == NOT_YET
    assert await bench.run(noting(), parts[1]) == Completed({"noted": 3, "sum": 15})
    assert await bench.run(noting(), parent) == Completed({"noted": 9, "sum": 45})
    assert await noted(bench) == nine()


async def test_partitions_are_replayed_at_the_rate_of_their_jobs(bench: Bench) -> None:
    handler = noting(failing_at(6))
    for _ in range(2):
        parent, parts = await parted(bench, handler)
        for delivery in (*parts, parent):
            await bench.run(handler, delivery)
    done = await replay_all(bench.engine, rate=Rate(1, timedelta(hours=1)))
    due_later = "select id from worker.outbox where due_at > now() + interval '50 min' order by id"
    later = [job_id for (job_id,) in await bench.all(due_later)]
    assert later == [done[1].job_id, f"{done[1].job_id}:2"]
    waiting = "select id from worker.run where next_at > now() + interval '50 min' order by id"
    assert [job_id for (job_id,) in await bench.all(waiting)] == later


async def test_a_cancel_leaves_the_partitions_of_an_older_job_of_the_same_id_alone(bench: Bench, redis: Redis) -> None:
    await parted(bench, noting())
    again = """
        insert into worker.outbox (id, enqueued_ms, name, queue, message)
        select id, enqueued_ms + 1, name, queue, message from worker.outbox
        where id = (select id from worker.run where partitions = 3)
        returning id
    """
    ((job_id,),) = await bench.all(again)
    assert await cancel(bench.engine, redis, job_id, ["arq:queue"]) == Done(job_id, "count")
    assert sorted(await statuses(bench)) == ["cancelled", "waiting", "waiting", "waiting", "yielded"]


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_discard_takes_the_dead_partitions_with_it(bench: Bench, *, by_id: bool) -> None:
    handler = noting(failing_at(6))
    parent, parts = await parted(bench, handler)
    for delivery in (*parts, parent):
        await bench.run(handler, delivery)
    done = [await discard(bench.engine, parent.job_id)] if by_id else await discard_all(bench.engine)
    assert [each.job_id for each in done] == [parent.job_id]
    assert await statuses(bench) == ["discarded", "completed", "discarded", "completed"]


async def test_when_the_job_has_been_cancelled_its_partitions_are(bench: Bench) -> None:
    """At most the chunk that runs is added: between two of them a partition looks at its parent."""

    async def cancel(at: int) -> None:
        if at == 4:
            await bench.all("update worker.run set status = 'cancelled', finished_at = now() where partitions = 3")

    handler = noting(cancel)
    parent, (first, second, third) = await parted(bench, handler)
    assert isinstance(await bench.run(handler, first), Completed)
    ended = Cancelled("the job that it is a partition of is cancelled")
    assert [await bench.run(handler, part) for part in (second, third)] == [ended, ended]
    assert await noted(bench) == ["1", "2", "3", "4", "5"]
    assert isinstance(await bench.run(handler, parent), Duplicate)


async def test_a_direct_job_is_the_outboxs_when_it_is_split(bench: Bench) -> None:
    handler, parent = noting(), bench.direct(Count(upto=9))
    report = await bench.report(handler, parent)
    assert report.outcome == PARTED
    assert report.adopted is not None
    assert await bench.rows() == 4
    rows = await bench.all("select id, message from worker.outbox where id <> :id order by seq", id=parent.job_id)
    for job_id, message in rows:
        assert isinstance(await bench.run(handler, bench.delivery(message, job_id=job_id)), Completed)
    adopted = bench.delivery(report.adopted, job_id=parent.job_id)
    assert await bench.run(handler, adopted) == Completed({"noted": 9, "sum": 45})


async def test_a_partition_never_takes_the_id_of_another_job(bench: Bench) -> None:
    other = bench.direct(Count(upto=1), job_id="import:2")
    assert isinstance(await bench.run(noting(partitions=1, split=None), other), Completed)
    outcome = await bench.run(noting(), bench.direct(Count(upto=9), job_id="import"))
    assert isinstance(outcome, Dead)
    assert "The partition import:2 of count has the id of another job" in outcome.error
    assert await noted(bench) == ["1"]


async def test_a_split_that_fails_leaves_nothing_and_is_tried_again(bench: Bench) -> None:
    async def fail(_job: Count, _session: AsyncSession, _partitions: int) -> Sequence[int]:
        raise ValueError("no keys yet")

    parent = await bench.enqueued(Count(upto=9))
    retry = RetryPolicy(attempts=2, base=timedelta(0))
    assert isinstance(await bench.run(noting(split=fail, retry=retry), parent), Retrying)
    assert (await bench.runs(), await bench.rows()) == ([("retrying", 1)], 1)
    assert await bench.run(noting(), parent) == PARTED


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([3, 3], "gave 3 before 3; give bounds in strictly ascending order"),
        ([6, 3], "gave 6 before 3; give bounds in strictly ascending order"),
        ([1, 2, 3], "gave 3 bounds for 3 partitions; give one less, at most"),
    ],
)
async def test_bounds_that_would_have_rows_worked_on_twice_are_refused(
    bench: Bench, bounds: list[int], told: str
) -> None:
    async def split(_job: Count, _session: AsyncSession, _partitions: int) -> Sequence[int]:
        return bounds

    outcome = await bench.run(noting(split=split), await bench.enqueued(Count(upto=9)))
    assert outcome == Dead(f"Permanent: The split of count {told}.")


async def test_a_job_that_began_whole_ends_whole(bench: Bench) -> None:
    """As when a deploy brings the partitions."""
    delivery = await bench.enqueued(Count(upto=5))
    whole = noting(partitions=1, split=None, yield_after=timedelta(0))
    assert isinstance(await bench.run(whole, delivery), Yielded)
    assert await bench.run(noting(), delivery) == Completed({"noted": 5, "sum": 15})


async def test_without_bounds_there_is_one_partition_and_no_key_is_left_out(bench: Bench) -> None:
    async def one(_job: Count, _session: AsyncSession, _partitions: int) -> Sequence[int]:
        return []

    handler = noting(split=one)
    parent, [part] = await parted(bench, handler)
    assert await bench.run(handler, part) == await bench.run(handler, parent) == Completed({"noted": 9, "sum": 45})


async def test_show_adds_up_the_progress_of_the_partitions(bench: Bench) -> None:
    handler = noting(yield_after=timedelta(0))
    parent, parts = await parted(bench, handler)
    for part in parts:
        await bench.run(handler, part)
    await bench.all("update worker.run set rate = 2 where parent_id is not null")
    async with bench.engine.connect() as connection:
        found = await details(connection, parent.job_id)
    assert found is not None
    entry = found.entry
    assert (entry.status, entry.done, entry.total, entry.rate, entry.time_left_s) == ("yielded", 6, 9, 6.0, 0.5)
    assert [(part.id, part.done, part.total) for part in found.partitions] == [(part.job_id, 2, 3) for part in parts]


def test_partitions_want_a_split_and_no_rate() -> None:
    with pytest.raises(ValueError, match="only one of partitions and split; give both or neither"):
        noting(split=None)
    with pytest.raises(ValueError, match="a rate and partitions"):
        noting(rate=Rate(1, timedelta(minutes=1)))
    with pytest.raises(ValueError, match="partitions=0; give 1 to 1,000"):
        noting(partitions=0)


async def test_a_handler_without_chunks_leaves_partitions_and_their_job_alone(bench: Bench) -> None:
    """As in a worker of another deploy. Each of them would be the whole job to it."""

    async def whole(job: Count, session: AsyncSession) -> None:
        await effect(session, "whole")

    async def wholes(jobs: Sequence[Count], session: AsyncSession) -> None:
        await effect(session, "whole")

    handler = noting()
    parent, parts = await parted(bench, handler)
    left = Released(NO_CHUNKS, OFFER_AGAIN)
    for delivery in (parent, *parts):
        assert await bench.run(Handler(Count, whole), delivery) == left
    assert await bench.run_all(BatchHandler(Count, wholes), (parent, *parts)) == [left] * 4
    for part in parts:
        assert isinstance(await bench.run(handler, part), Completed)
    assert await noted(bench) == nine()


async def test_a_partition_that_a_handler_without_a_run_completed_has_nothing_to_add_up(bench: Bench) -> None:
    """One of a deploy before the chunks. Else the job were dead, and no replay could help it."""

    async def whole(job: Count, session: AsyncSession) -> None:
        await effect(session, "whole")

    handler = noting()
    parent, (first, *others) = await parted(bench, handler)
    assert await bench.run(Handler(Count, whole, once=False), first) == Completed(None)
    for part in others:
        await bench.run(handler, part)
    assert await bench.run(handler, parent) == Completed({"noted": 6, "sum": 39})
