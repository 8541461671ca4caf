"""A job in many transactions: it resumes after the last chunk that committed, and no row is worked on twice."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, Grip, effect
from tests.runtime.postgres_proxy import COMMIT_SENT, COMMITTED, PostgresProxy
from worker.brakes import Brakes
from worker.call import Work
from worker.chunk import Chunk, Step
from worker.errors import Cancel, Snooze
from worker.handler import ChunkedHandler, Handler
from worker.outcome import BUSY, Cancelled, Completed, Dead, Duplicate, Released, Retrying, Snoozed, Yielded
from worker.retry import RetryPolicy

NOW = RetryPolicy(attempts=3, base=timedelta(0))
MINUTE = timedelta(minutes=1)

Meanwhile = Callable[[int], Awaitable[object]]


async def nothing(_at: int) -> None:
    pass


def counting(meanwhile: Meanwhile = nothing, timeout: timedelta = MINUTE) -> ChunkedHandler[Count, int]:
    """Count from the cursor to `upto`, one a chunk; `meanwhile` is called with the number before the chunk ends."""

    async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        await effect(session, str(at))
        await meanwhile(at)
        return chunk.step(at if at < job.upto else None, done=1, total=job.upto, counts={"counted": 1, "sum": at})

    return ChunkedHandler(Count, count, cursor=int, retry=NOW, timeout=timeout)


def failing_at(number: int, error: BaseException) -> tuple[Meanwhile, list[int]]:
    """Raise `error` at `number`, and note each number that was tried."""
    tried: list[int] = []

    async def fail(at: int) -> None:
        tried.append(at)
        if at == number:
            raise error

    return fail, tried


async def test_counts_add_up_to_the_runs_result(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=4))
    assert await bench.run(counting(), delivery) == Completed({"counted": 4, "sum": 10})
    run = await bench.run_of(delivery)
    assert (run.status, run.done, run.total, run.result) == ("completed", 4, 4, {"counted": 4, "sum": 10})
    assert await bench.effects() == ["1", "2", "3", "4"]
    assert await bench.rows() == 0
    assert await bench.run(counting(), delivery) == Duplicate({"counted": 4, "sum": 10})


async def test_other_results_are_merged_beside_the_counts_and_the_last_one_stays(bench: Bench) -> None:
    async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        return chunk.step(at if at < job.upto else None, counts={"n": 1}, result={"path": f"part-{at}"})

    handler = ChunkedHandler(Count, count, cursor=int)
    assert await bench.run(handler, await bench.enqueued(Count(upto=3))) == Completed({"n": 3, "path": "part-3"})


async def test_what_a_chunk_keeps_is_there_for_the_next_until_one_fails_or_the_attempt_ends(bench: Bench) -> None:
    told: list[str] = []

    class Kept:
        def __init__(self, at: int) -> None:
            self.at = at

        def close(self) -> None:
            told.append(f"closed {self.at}")

    async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at, kept = (chunk.cursor or 0) + 1, chunk.memory.recall(Kept)
        told.append(f"{at} after {kept.at if kept else None}")
        chunk.memory.keep(Kept(at))
        if at == 3 and "closed 3" not in told:
            raise ZeroDivisionError
        return chunk.step(at if at < job.upto else None)

    delivery = await bench.enqueued(Count(upto=4))
    handler = ChunkedHandler(Count, count, cursor=int, retry=NOW)
    assert isinstance(await bench.run(handler, delivery), Retrying)
    assert told == ["1 after None", "2 after 1", "closed 1", "3 after 2", "closed 2", "closed 3"]
    told[:-1] = []
    assert await bench.run(handler, delivery) == Completed({})
    assert told == ["closed 3", "3 after None", "4 after 3", "closed 3", "closed 4"]


async def test_each_chunk_commits_with_its_cursor_and_its_progress(bench: Bench) -> None:
    seen: list[tuple[Any, ...]] = []

    async def look(_at: int) -> None:
        seen.extend(await bench.all("select status, cursor, done, (select count(*) from effect) from worker.run"))

    await bench.run(counting(look), await bench.enqueued(Count(upto=3)))
    assert seen == [("yielded", 1, 1, 1), ("yielded", 2, 2, 2)]


async def test_it_resumes_after_the_last_chunk_that_committed(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=4))
    fail, tried = failing_at(3, ValueError())
    assert isinstance(await bench.run(counting(fail), delivery), Retrying)
    assert await bench.effects() == ["1", "2"]
    assert await bench.run(counting(), delivery) == Completed({"counted": 4, "sum": 10})
    assert tried == [1, 2, 3]
    assert await bench.effects() == ["1", "2", "3", "4"]


async def test_failures_count_anew_after_progress(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=10))
    for number in (1, 2, 3, 4):
        for _ in range(2):
            fail, _tried = failing_at(number, ValueError())
            assert isinstance(await bench.run(counting(fail), delivery), Retrying)
        assert await bench.runs() == [("retrying", 2)]
    kept = await bench.all("select attempt from worker.attempt order by seq")
    assert [attempt for (attempt,) in kept] == [1, 2] * 4


async def test_a_chunk_that_never_succeeds_is_dead_and_a_replay_goes_on_from_its_cursor(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    fail, _tried = failing_at(2, ValueError())
    outcomes = [await bench.run(counting(fail), delivery) for _ in range(3)]
    assert isinstance(outcomes[-1], Dead)
    run = await bench.run_of(delivery)
    assert (run.status, run.cursor, run.done) == ("dead", 1, 1)
    # As `worker replay` does it.
    await bench.all(
        "insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch) "
        "select id, enqueued_ms, name, queue, message, 1 from worker.run"
    )
    await bench.all("update worker.run set status = 'waiting', attempt = 0, finished_at = null, message = null")
    assert await bench.run(counting(), delivery) == Completed({"counted": 3, "sum": 6})
    assert await bench.effects() == ["1", "2", "3"]


async def test_the_cursor_is_read_under_the_runs_lock_never_from_memory(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=5))
    overtaken: list[object] = []

    async def overtake(at: int) -> None:
        # The first worker is cut off in its second chunk, and another one does that chunk and the next.
        if at == 2 and not overtaken:
            overtaken.append(at)
            await bench.all(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and state = 'idle in transaction'"
            )
            theirs = replace(delivery, hold=Grip(stopping=True))
            overtaken.extend([await other.run(counting(), theirs) for _ in range(2)])

    assert await bench.run(counting(overtake), delivery) == Completed({"counted": 5, "sum": 15})
    assert overtaken == [2, Yielded(), Yielded()]
    assert await bench.effects() == ["1", "2", "3", "4", "5"]


async def test_a_failure_isnt_counted_against_a_run_that_went_on_meanwhile(bench: Bench, other: Bench) -> None:
    """No failure is counted before or after the other worker's chunk, so the count alone doesn't tell."""
    delivery = await bench.enqueued(Count(upto=5))

    async def be_overtaken(at: int) -> None:
        if at == 2:
            await bench.all(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and state = 'idle in transaction'"
            )
            await other.run(counting(), replace(delivery, hold=Grip(stopping=True)))
            raise ValueError

    assert await bench.run(counting(be_overtaken), delivery) == Released("another worker has taken it over", BUSY)
    assert await bench.runs() == [("yielded", 0)]
    assert await bench.all("select * from worker.attempt") == []


async def test_two_workers_with_one_chunked_job_work_on_no_row_twice(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=20))
    outcomes = await asyncio.gather(*(side.run(counting(), delivery) for side in (bench, other)))
    assert Completed({"counted": 20, "sum": 210}) in outcomes
    assert await bench.effects() == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_chunk_whose_commit_broke_is_neither_lost_nor_done_twice(
    far: Bench, proxy: PostgresProxy, where: str
) -> None:
    async def cut(at: int) -> None:
        if at in {2, 4} and proxy.cuts < at // 2:
            proxy.cut_before, proxy.cut_after = (COMMIT_SENT, None) if where == "before" else (None, COMMITTED)

    delivery = await far.enqueued(Count(upto=4))
    assert await far.run(counting(cut), delivery) == Completed({"counted": 4, "sum": 10})
    assert proxy.cuts == 2
    assert await far.effects() == ["1", "2", "3", "4"]
    assert await far.all("select * from worker.attempt") == []


async def test_the_timeout_is_of_one_chunk(bench: Bench) -> None:
    async def hang_at_three(at: int) -> None:
        if at == 3:
            await asyncio.Event().wait()

    delivery = await bench.enqueued(Count(upto=3))
    outcome = await bench.run(counting(hang_at_three, timeout=timedelta(seconds=1)), delivery)
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("JobTimeout")
    assert await bench.effects() == ["1", "2"]


async def test_a_snooze_waits_with_its_cursor_kept(bench: Bench) -> None:
    delivery = await bench.enqueued(Count(upto=3))
    snooze, _tried = failing_at(2, Snooze(timedelta(0)))
    assert await bench.run(counting(snooze), delivery) == Snoozed(timedelta(0))
    run = await bench.run_of(delivery)
    assert (run.status, run.cursor, run.attempt) == ("snoozed", 1, 0)
    assert await bench.run(counting(), delivery) == Completed({"counted": 3, "sum": 6})


async def test_a_cancel_keeps_the_chunks_that_committed(bench: Bench) -> None:
    cancel, _tried = failing_at(3, Cancel("enough"))
    assert await bench.run(counting(cancel), await bench.enqueued(Count(upto=5))) == Cancelled("enough")
    assert await bench.effects() == ["1", "2"]


async def test_an_abort_between_chunks_ends_the_job(bench: Bench) -> None:
    hold = Grip()

    async def abort(at: int) -> None:
        hold.aborted = at == 2

    assert await bench.run(counting(abort), await bench.enqueued(Count(upto=5), hold=hold)) == Cancelled("aborted")
    assert await bench.effects() == ["1", "2"]
    assert (await bench.runs(), await bench.rows()) == ([("cancelled", 0)], 0)


async def test_a_lock_held_between_chunks_gives_the_job_up_without_a_count(
    bench: Bench, other: Bench, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = await bench.enqueued(Count(upto=3), hold=Grip(ours=False))
    async with other.engine.connect() as holder:

        async def look(_brakes: Brakes, _work: Work) -> None:
            """Between two chunks, and before the first."""
            if (await bench.runs()) == [("yielded", 0)]:
                await holder.execute(text("select from worker.run for update"))

        with monkeypatch.context() as between:
            between.setattr(Brakes, "look", look)
            assert isinstance(await bench.run(counting(), delivery), Released)
        await holder.rollback()
    assert await bench.runs() == [("yielded", 0)]
    assert await bench.run(counting(), delivery) == Completed({"counted": 3, "sum": 6})


async def test_a_handler_that_returns_no_step_is_dead_with_a_sentence(bench: Bench) -> None:
    async def wrong(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Any:
        await effect(session, "work")
        return {"counted": 1}

    outcome = await bench.run(ChunkedHandler(Count, wrong, cursor=int), await bench.enqueued(Count()))
    assert outcome == Dead("Permanent: The chunked handler of count returned dict; return chunk.step(…).")
    assert await bench.effects() == []


class Place(BaseModel):
    """A cursor with fields."""

    line: int
    seen_at: datetime


@pytest.mark.parametrize(
    ("kind", "cursor"),
    [
        (int, 2**60),
        (str, "ключ"),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)),
        (tuple[int, str], (1, "a")),
        (dict[int, bool], {1: True}),
        (Place, Place(line=3, seen_at=datetime(2026, 1, 2, tzinfo=UTC))),
    ],
)
async def test_a_cursor_of_any_type_comes_back_as_it_was(bench: Bench, kind: Any, cursor: Any) -> None:
    seen: list[Any] = []

    async def once_more(job: Count, session: AsyncSession, chunk: Chunk[Any]) -> Step[Any]:
        seen.append(chunk.cursor)
        return chunk.step(cursor if chunk.cursor is None else None)

    outcome = await bench.run(ChunkedHandler(Count, once_more, cursor=kind), await bench.enqueued(Count()))
    assert isinstance(outcome, Completed)
    assert seen == [None, cursor]


@pytest.mark.parametrize(
    ("kind", "cursor"),
    [(float, math.inf), (float, math.nan), (tuple[float, int], (math.inf, 1)), (int, "abc"), (int, object())],
)
async def test_a_cursor_that_would_not_come_back_is_never_committed(bench: Bench, kind: Any, cursor: Any) -> None:
    """Infinity is null in JSON, and null is the beginning."""

    async def stepping(job: Count, session: AsyncSession, chunk: Chunk[Any]) -> Step[Any]:
        await effect(session, str(chunk.cursor))
        return chunk.step(cursor if chunk.cursor is None else None)

    outcome = await bench.run(ChunkedHandler(Count, stepping, cursor=kind), await bench.enqueued(Count()))
    assert isinstance(outcome, Dead)
    assert f"The handler's cursor is a {type(cursor).__name__} that can't be written as JSON" in outcome.error
    assert await bench.effects() == []


async def test_the_chunk_is_told_its_size(bench: Bench) -> None:
    async def sizing(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(None, counts={"size": chunk.size})

    handler = ChunkedHandler(Count, sizing, cursor=int, size=250)
    assert await bench.run(handler, await bench.enqueued(Count())) == Completed({"size": 250})


async def test_a_direct_chunked_job_is_the_outboxs_from_its_first_chunk_on(bench: Bench) -> None:
    rows: list[int] = []

    async def look(_at: int) -> None:
        rows.append(await bench.rows())

    delivery = bench.direct(Count(upto=3))
    assert await bench.run(counting(look), delivery) == Completed({"counted": 3, "sum": 6})
    assert rows == [0, 1, 1]
    assert await bench.rows() == 0


async def test_a_cursor_that_stands_still_would_never_end_and_is_no_retrys_matter(bench: Bench) -> None:
    async def standing(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        await effect(session, str(chunk.cursor))
        return chunk.step(chunk.cursor or 1)

    outcome = await bench.run(ChunkedHandler(Count, standing, cursor=int), await bench.enqueued(Count()))
    assert isinstance(outcome, Dead)
    assert "returned the cursor that it was given, and would never end" in outcome.error
    assert await bench.effects() == ["None"]


async def test_what_was_chunked_before_a_deploy_fails_and_snoozes_as_the_plain_job_that_it_is_now(bench: Bench) -> None:
    async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step((chunk.cursor or 0) + 1, done=1)

    async def snooze(job: Count, session: AsyncSession) -> None:
        raise Snooze(timedelta(hours=1))

    async def fail(job: Count, session: AsyncSession) -> None:
        raise ValueError("no")

    delivery = await bench.enqueued(Count())
    chunked = ChunkedHandler(Count, count, cursor=int, yield_after=timedelta(0))
    assert isinstance(await bench.run(chunked, delivery), Yielded)
    assert isinstance(await bench.run(Handler(Count, snooze), delivery), Snoozed)
    await bench.due(delivery)
    outcomes = [await bench.run(Handler(Count, fail, retry=replace(NOW, attempts=2)), delivery) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [Retrying, Dead]


async def test_what_a_memory_raises_when_it_is_closed_is_nobodys_failure(bench: Bench) -> None:
    class Stuck:
        def close(self) -> None:
            raise OSError("it can't be closed")

    async def fail(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        chunk.memory.keep(Stuck())
        raise ValueError("no")

    outcome = await bench.run(ChunkedHandler(Count, fail, cursor=int, retry=NOW), await bench.enqueued(Count()))
    assert isinstance(outcome, Retrying)
    assert outcome.error == "ValueError: no"
