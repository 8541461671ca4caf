"""A job that was sent straight to Redis: applied at most once, and adopted by the outbox as soon as it has to wait."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, Grip, Note, effect
from tests.support.waiting import wait_until
from worker.chunk import Chunk, Step
from worker.delivery import Report
from worker.errors import Permanent, Snooze
from worker.handler import ChunkedHandler, Handler
from worker.outcome import Completed, Dead, Duplicate, Released, Retrying, Snoozed, Yielded
from worker.retry import RetryPolicy
from worker.wire import Message, decode

NOW = RetryPolicy(attempts=2, base=timedelta(0))


async def noting(job: Note, session: AsyncSession) -> str:
    await effect(session, job.text)
    return "done"


def raising(error: Exception) -> Handler[Note]:
    async def handler(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        raise error

    return Handler(Note, handler, retry=NOW)


async def stepping(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    at = (chunk.cursor or 0) + 1
    await effect(session, str(at))
    return chunk.step(at if at < job.upto else None)


STEPPING = ChunkedHandler(Count, stepping, cursor=int, retry=NOW)


def assert_adopted(report: Report, row: bytes) -> None:
    """The message in Redis and the row say that the job is from the outbox now, and nothing else has changed."""
    assert report.adopted == row
    message = decode(row)
    assert isinstance(message, Message)
    assert message.from_outbox
    assert report.message is not None
    assert replace(message, from_outbox=False) == report.message


async def test_a_success_leaves_a_run_and_no_row(bench: Bench) -> None:
    report = await bench.report(Handler(Note, noting), bench.direct(Note(text="a")))
    assert report.outcome == Completed("done")
    assert report.adopted is None
    assert (await bench.runs(), await bench.rows()) == ([("completed", 0)], 0)


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [(ValueError(), Retrying, "retrying"), (Snooze(timedelta(0)), Snoozed, "snoozed")],
)
async def test_its_first_failure_or_snooze_adopts_it(
    bench: Bench, error: Exception, outcome: type[object], status: str
) -> None:
    delivery = bench.direct(Note(text="a"))
    report = await bench.report(raising(error), delivery)
    assert isinstance(report.outcome, outcome)
    row = await bench.one("select * from worker.outbox")
    assert (row.id, row.name, row.queue, row.coalesces) == (delivery.job_id, "note", "arq:queue", False)
    assert row.sent_epoch is not None  # Redis has it
    assert_adopted(report, bytes(row.message))
    assert [status for status, _ in await bench.runs()] == [status]


async def test_a_yield_adopts_it(bench: Bench) -> None:
    report = await bench.report(STEPPING, bench.direct(Count(upto=2), hold=Grip(stopping=True)))
    assert report.outcome == Yielded()
    assert_adopted(report, bytes((await bench.one("select message from worker.outbox")).message))


async def test_after_its_first_chunk_it_is_adopted_even_if_the_next_is_only_put_back(
    bench: Bench, other: Bench, impatient: None
) -> None:
    """The row stands; the message in Redis must say so, too."""
    delivery = bench.direct(Count(upto=3), hold=Grip(ours=False))
    async with other.engine.connect() as holder:
        locking: list[asyncio.Task[Any]] = []
        # In the queue for the lock while the first chunk holds it, and the next to have it.
        lock = text(
            "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox) "
            "values (:id, 1700000000000, 'count', '', 'waiting', false) "
            "on conflict (id, enqueued_ms) do update set name = run.name"
        )

        async def then_locked(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
            step = await stepping(job, session, chunk)
            locking.append(asyncio.create_task(holder.execute(lock, {"id": delivery.job_id})))
            await wait_until(lambda: other.is_waiting(wanted="transactionid"))
            return step

        report = await bench.report(ChunkedHandler(Count, then_locked, cursor=int), delivery)
        await locking[0]
        await holder.rollback()
    assert isinstance(report.outcome, Released)
    assert_adopted(report, bytes((await bench.one("select message from worker.outbox")).message))


async def test_it_is_adopted_once_however_often_it_fails(bench: Bench) -> None:
    delivery = bench.direct(Note())
    for error in (Snooze(timedelta(0)), ValueError(), Snooze(timedelta(0))):
        await bench.run(raising(error), delivery)
        assert await bench.rows() == 1


async def test_it_is_adopted_beside_another_job_of_its_id_that_an_earlier_redis_was_sent(bench: Bench) -> None:
    await bench.enqueued(Note(), job_id="same")
    report = await bench.report(raising(ValueError()), bench.direct(Note(), job_id="same"))
    assert isinstance(report.outcome, Retrying)
    sent = await bench.all("select enqueued_ms, sent_epoch is not null from worker.outbox order by seq")
    assert sent == [(0, True), (1_700_000_000_000, False)]


async def test_as_an_adopted_job_it_goes_on_like_any_from_the_outbox(bench: Bench) -> None:
    delivery = bench.direct(Note(text="a"))
    report = await bench.report(raising(ValueError()), delivery)
    adopted = replace(delivery, message=report.adopted)
    assert await bench.run(Handler(Note, noting), adopted) == Completed("done")
    assert (await bench.runs(), await bench.rows()) == ([("completed", 1)], 0)
    assert await bench.run(Handler(Note, noting), adopted) == Duplicate("done")
    assert await bench.run(Handler(Note, noting), delivery) == Duplicate("done")
    assert await bench.effects() == ["a"]


async def test_a_message_that_wasnt_rewritten_in_time_does_no_harm(bench: Bench) -> None:
    """The lease was lost, say: the job is adopted, but Redis still has the direct message."""
    delivery = bench.direct(Note(text="a"))
    await bench.run(raising(ValueError()), delivery)
    assert await bench.run(Handler(Note, noting), delivery) == Completed("done")
    assert (await bench.runs(), await bench.rows()) == ([("completed", 1)], 0)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_a_dead_one_leaves_no_row_and_is_a_duplicate_when_it_is_delivered_again(
    bench: Bench, attempts: int
) -> None:
    delivery = bench.direct(Note())
    handler = replace(raising(ValueError("no")), retry=RetryPolicy(attempts=attempts, base=timedelta(0)))
    outcomes = [await bench.run(handler, delivery) for _ in range(attempts)]
    assert outcomes[-1] == Dead("ValueError: no")
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.from_outbox, bytes(run.message)) == ("dead", attempts, False, delivery.message)
    assert await bench.rows() == 0
    assert await bench.run(handler, delivery) == Duplicate(None, failed="ValueError: no")


async def test_permanent_at_its_first_attempt_adopts_nothing(bench: Bench) -> None:
    report = await bench.report(raising(Permanent("never")), bench.direct(Note()))
    assert report.outcome == Dead("Permanent: never")
    assert report.adopted is None
    assert await bench.rows() == 0


async def test_what_is_put_back_before_its_first_attempt_ended_is_not_adopted(
    bench: Bench, other: Bench, impatient: None
) -> None:
    delivery = bench.direct(Note(text="a"), hold=Grip(ours=False))
    reports: list[Report] = []

    async def slow(job: Note, session: AsyncSession) -> str:
        reports.append(await other.report(Handler(Note, noting), delivery))
        return "slow"

    assert await bench.run(Handler(Note, slow), delivery) == Completed("slow")
    assert isinstance(reports[0].outcome, Released)
    assert reports[0].adopted is None
