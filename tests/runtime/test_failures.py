"""What an attempt that fails leaves behind: nothing of its work, its error, and when it is tried again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import WORKER, Bench, Count, Grip, Note, effect
from tests.runtime.postgres_proxy import PostgresProxy
from worker.chunk import Chunk, Step
from worker.errors import LONGEST_DELAY, Cancel, Permanent, Snooze
from worker.handler import AnyHandler, BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed
from worker.retry import RetryPolicy

NOW = RetryPolicy(base=timedelta(0))


async def failing(job: Note, session: AsyncSession) -> None:
    await effect(session, "work")
    raise ValueError(job.text or "no")


def raising(error: BaseException) -> Handler[Note]:
    async def handler(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        raise error

    return Handler(Note, handler, retry=NOW)


def returning(result: object) -> Handler[Note]:
    async def handler(job: Note, session: AsyncSession) -> object:
        await effect(session, "work")
        return result

    return Handler(Note, handler)


async def test_a_failure_rolls_back_and_writes_attempt_error_and_next_time(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    before = datetime.now(UTC)
    outcome = await bench.run(Handler(Note, failing), delivery)
    assert isinstance(outcome, Retrying)
    assert outcome.error == "ValueError: no"
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error, run.finished_at) == ("retrying", 1, "ValueError: no", None)
    assert before <= run.next_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert await bench.effects() == []
    assert await bench.rows() == 1


@pytest.mark.parametrize("once", [True, False])
async def test_a_handler_that_cancels_its_own_task_has_failed(bench: Bench, *, once: bool) -> None:
    """It would be run again without end, if that were taken for a worker that stops."""

    async def cancelling(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    handler = Handler(Note, cancelling, retry=RetryPolicy(attempts=1), once=once)
    outcome = await bench.run(handler, await bench.enqueued(Note(), hold=Grip(tells=True)))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("SelfCancelled: The handler cancelled its own task")
    assert await bench.effects() == []


async def test_each_failure_is_kept_with_its_traceback_and_worker(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    for _ in range(2):
        await bench.run(Handler(Note, failing, retry=NOW), delivery)
    kept = await bench.all("select attempt, error, worker, traceback from worker.attempt order by seq")
    assert [row[:3] for row in kept] == [(1, "ValueError: no", WORKER), (2, "ValueError: no", WORKER)]
    assert all('raise ValueError(job.text or "no")' in row[3] for row in kept)


async def test_it_is_dead_after_the_policys_attempts_and_kept_with_its_bytes_and_error(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(text="x"))
    handler = Handler(Note, failing, retry=RetryPolicy(attempts=3, base=timedelta(0)))
    outcomes = [await bench.run(handler, delivery) for _ in range(3)]
    assert [type(outcome) for outcome in outcomes] == [Retrying, Retrying, Dead]
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error, run.next_at) == ("dead", 3, "ValueError: x", None)
    assert bytes(run.message) == delivery.message
    assert run.finished_at is not None
    assert await bench.rows() == 0
    assert await bench.run(handler, delivery) == Duplicate(None, failed="ValueError: x")


async def test_the_runs_next_time_is_the_truth_whenever_the_message_comes(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    handler = Handler(Note, failing, retry=RetryPolicy(base=timedelta(hours=1)))
    first = await bench.run(handler, delivery)
    assert isinstance(first, Retrying)
    second = await bench.run(handler, delivery)
    assert isinstance(second, Released)
    assert first.delay - timedelta(minutes=1) < second.delay <= first.delay
    assert await bench.runs() == [("retrying", 1)]


async def test_a_success_after_failures_clears_the_error_and_keeps_the_count(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    await bench.run(Handler(Note, failing, retry=NOW), delivery)
    assert await bench.run(returning("done"), delivery) == Completed("done")
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error, run.next_at, run.result) == ("completed", 1, None, None, "done")


async def test_an_error_that_the_policy_gives_up_on_is_dead_at_once(bench: Bench) -> None:
    handler = Handler(Note, failing, retry=RetryPolicy(give_up_on=(ValueError,)))
    assert await bench.run(handler, await bench.enqueued(Note())) == Dead("ValueError: no")


async def test_permanent_is_dead_at_once(bench: Bench) -> None:
    assert await bench.run(raising(Permanent("never")), await bench.enqueued(Note())) == Dead("Permanent: never")
    assert await bench.runs() == [("dead", 1)]


async def test_a_snooze_rolls_back_burns_no_attempt_and_waits_as_long_as_it_said(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    handler = raising(Snooze(timedelta(hours=1), "the bank is closed"))
    assert await bench.run(handler, delivery) == Snoozed(timedelta(hours=1))
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error) == ("snoozed", 0, "Snooze: the bank is closed")
    assert timedelta(minutes=59) < run.next_at - datetime.now(UTC) <= timedelta(hours=1)
    assert isinstance(await bench.run(handler, delivery), Released)
    assert await bench.effects() == []
    assert await bench.all("select * from worker.attempt") == []


@pytest.mark.parametrize("delay", [timedelta(seconds=-1), timedelta.max])
async def test_a_snooze_that_makes_no_sense_is_a_failure_with_a_sentence(bench: Bench, delay: timedelta) -> None:
    async def snoozing(job: Note, session: AsyncSession) -> None:
        raise Snooze(delay)

    outcome = await bench.run(Handler(Note, snoozing), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert "at most ten years" in outcome.error


async def test_the_longest_snooze_is_kept(bench: Bench) -> None:
    assert await bench.run(raising(Snooze(LONGEST_DELAY)), await bench.enqueued(Note())) == Snoozed(LONGEST_DELAY)


async def test_a_snooze_between_failures_keeps_their_count(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    for error in (ValueError(), Snooze(timedelta(0)), ValueError()):
        await bench.run(raising(error), delivery)
    assert await bench.runs() == [("retrying", 2)]


async def test_a_cancel_rolls_back_and_ends_the_job(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    assert await bench.run(raising(Cancel("not wanted")), delivery) == Cancelled("not wanted")
    run = await bench.run_of(delivery)
    assert (run.status, run.error, bytes(run.message)) == ("cancelled", "not wanted", delivery.message)
    assert (await bench.effects(), await bench.rows()) == ([], 0)


@pytest.mark.parametrize("error", [SystemExit(3), BaseException("bare"), asyncio.CancelledError("its own")])
async def test_what_is_no_exception_fails_the_job_and_not_the_worker(bench: Bench, error: BaseException) -> None:
    outcome = await bench.run(raising(error), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith(type(error).__name__)
    assert await bench.runs() == [("retrying", 1)]


async def test_an_error_that_cant_be_printed_is_a_failure_like_any_other(bench: Bench) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    outcome = await bench.run(raising(UnprintableError()), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error == "UnprintableError: its text can't be read"


class OddError(Exception):
    """Whoever looks at it gets another error."""

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        raise RuntimeError


@dataclass
class OddSnooze(Snooze):
    """A dataclass's own `__init__` calls no parent's: nobody knows for how long."""

    until: str


class FarSnooze(Snooze):
    """Says of itself what Snooze refuses."""

    def __init__(self) -> None:
        self.delay = timedelta.max


ODD = (OddError("odd"), GeneratorExit(), KeyboardInterrupt(), OddSnooze("later"), FarSnooze())


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("once", [True, False])
async def test_what_is_raised_is_counted_however_odd_it_is(bench: Bench, error: BaseException, *, once: bool) -> None:
    """Else it would be run again without end."""
    outcome = await bench.run(replace(raising(error), once=once), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert type(error).__name__ in outcome.error
    assert await bench.runs() == [("retrying", 1)]


@dataclass
class SoldOut(Cancel):
    """As OddSnooze."""

    sku: str


@dataclass
class Coded(Cancel):
    reason: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]


@pytest.mark.parametrize(
    ("cancel", "reason"),
    [
        (SoldOut("a-1"), "cancelled by its handler"),
        (Coded(404), "404"),
        (Cancel(LookupError("gone")), "gone"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ],
)
async def test_a_cancel_ends_the_job_whatever_it_was_made_of(bench: Bench, cancel: Cancel, reason: str) -> None:
    assert await bench.run(raising(cancel), await bench.enqueued(Note())) == Cancelled(reason)


async def test_a_batch_is_spoilt_by_no_error_however_odd(bench: Bench) -> None:
    async def fail(jobs: Sequence[Note], session: AsyncSession) -> None:
        if any(job.text == "bad" for job in jobs):
            raise OddError

    handler = BatchHandler(Note, fail, linger=timedelta(milliseconds=50), retry=RetryPolicy(attempts=1))
    deliveries = [await bench.enqueued(Note(text=told)) for told in ("good", "bad", "good")]
    outcomes = await bench.run_all(handler, deliveries)
    assert [type(outcome) for outcome in outcomes] == [Completed, Dead, Completed]


async def test_an_errors_text_may_hold_nul_lone_surrogates_and_megabytes(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    outcome = await bench.run(raising(ValueError("a\0b\ud800" + "x" * 10_000_000)), delivery)
    assert isinstance(outcome, Retrying)
    run = await bench.run_of(delivery)
    assert run.error.startswith("ValueError: a\\0b\\ud800xxx")
    assert len(run.error) < 2_100
    ((trace,),) = await bench.all("select length(traceback) from worker.attempt")
    assert trace <= 20_000


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (object(), "can't be written as JSON"),
        ({"a": b"\xff"}, "can't be written as JSON"),
        ("\ud800", "can't be written as JSON"),
        ("x" * 65_536, "the limit is 65,536"),
        ({"a": ["b\0"]}, "NUL"),
        ({"\\\0": 1}, "NUL"),
    ],
)
async def test_a_result_that_cant_be_kept_is_dead_and_rolled_back(bench: Bench, result: object, sentence: str) -> None:
    outcome = await bench.run(returning(result), await bench.enqueued(Note()))
    assert isinstance(outcome, Dead)
    assert sentence in outcome.error
    assert await bench.effects() == []


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        ("x" * 65_534, "x" * 65_534),
        (r"\u0000", r"\u0000"),
        ([datetime(2026, 1, 2, tzinfo=UTC), timedelta(seconds=5)], ["2026-01-02T00:00:00Z", "PT5S"]),
        ([float("nan"), float("inf"), 10**400], [None, None, 10**400]),
        (None, None),
        (0, 0),
    ],
)
async def test_what_a_completed_job_returned_is_what_its_duplicates_return(
    bench: Bench, result: object, kept: object
) -> None:
    delivery = await bench.enqueued(Note())
    assert await bench.run(returning(result), delivery) == Completed(kept)  # type: ignore[arg-type]  # JSON, as parametrized
    assert await bench.run(returning(result), delivery) == Duplicate(kept)  # type: ignore[arg-type]  # the same


async def test_the_errors_of_sqlalchemy_carry_no_parameters(bench: Bench) -> None:
    async def leaking(job: Note, session: AsyncSession) -> None:
        await session.execute(text("select cast(:secret as text) from nowhere"), {"secret": job.text})

    outcome = await bench.run(Handler(Note, leaking), await bench.enqueued(Note(text="hunter2")))
    assert isinstance(outcome, Retrying)
    ((told,),) = await bench.all("select error || traceback from worker.attempt")
    assert "nowhere" in told
    assert "hunter2" not in told


# --- who may write a failure down ------------------------------------------------------------------------------------


def meanwhile(act: Callable[[], Awaitable[object]]) -> Handler[Note]:
    """A handler that fails after its transaction has lost the run's lock to somebody who did `act`."""

    async def handler(job: Note, session: AsyncSession) -> None:
        await session.execute(text("select 1"))
        await act()
        raise ValueError

    return Handler(Note, handler, retry=NOW)


async def test_a_failure_never_touches_a_run_that_somebody_else_made_final(bench: Bench, other: Bench) -> None:
    """The failure is recorded late: between the rollback and the record another worker completes the job."""
    delivery = await bench.enqueued(Note())

    async def complete() -> None:
        await overtake(bench)
        assert await other.run(returning("done"), delivery) == Completed("done")

    assert await bench.run(meanwhile(complete), delivery) == Duplicate("done")
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.error) == ("completed", 0, None)
    assert await bench.all("select * from worker.attempt") == []


async def test_a_failure_of_an_attempt_that_was_counted_already_isnt_counted_again(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Note())

    async def fail() -> None:
        await overtake(bench)
        assert isinstance(await other.run(raising(ValueError("theirs")), delivery), Retrying)

    outcome = await bench.run(meanwhile(fail), delivery)
    assert isinstance(outcome, Released)
    assert await bench.runs() == [("retrying", 1)]
    assert await bench.all("select error from worker.attempt") == [("ValueError: theirs",)]


async def overtake(bench: Bench) -> None:
    """End the transaction that holds the run, as a worker does that takes it for a zombie's."""
    await bench.all(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where datname = current_database() and state = 'idle in transaction'"
    )


async def test_a_job_from_the_outbox_is_written_down_only_while_its_row_stands(bench: Bench) -> None:
    async def failing_without_row(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        async with bench.engine.begin() as connection:
            await connection.execute(text("delete from worker.outbox"))
        raise ValueError

    handler = ChunkedHandler(Count, failing_without_row, cursor=int)
    assert await bench.run(handler, await bench.enqueued(Count())) == Duplicate(None)
    assert await bench.runs() == []


async def test_a_failure_counts_nothing_while_postgresql_is_away(
    far: Bench, bench: Bench, proxy: PostgresProxy
) -> None:
    async def failing_in_the_dark(job: Note, session: AsyncSession) -> None:
        await proxy.stop()
        raise ValueError

    outcome = await far.run(Handler(Note, failing_in_the_dark), await far.enqueued(Note()))
    assert isinstance(outcome, Released)
    assert not far.availability.is_up()
    assert await bench.runs() == []
    assert await bench.rows() == 1


async def test_a_failure_that_cant_be_written_for_a_held_lock_is_counted_by_nobody(
    bench: Bench, other: Bench, impatient: None
) -> None:
    """Somebody looks at the run with a lock just then, as `worker cancel` does."""
    delivery = await bench.enqueued(Note(), hold=Grip())
    await bench.run(raising(ValueError("first")), delivery)

    async with other.engine.connect() as person:

        async def then(job: Note, session: AsyncSession) -> None:
            await overtake(bench)
            await person.execute(text("select from worker.run for update"))
            raise ValueError("second")

        outcome = await bench.run(Handler(Note, then), delivery)
        assert isinstance(outcome, Released)
    assert await bench.runs() == [("retrying", 1)]
    assert bench.told.faults == []


async def test_a_ledger_that_fails_in_a_way_nobody_expects_is_a_fault_and_the_job_stays(own: Bench) -> None:
    async def breaking(job: Note, session: AsyncSession) -> None:
        async with own.engine.begin() as connection:
            await connection.execute(text("alter table worker.attempt rename to gone"))
        raise ValueError

    outcome = await own.run(Handler(Note, breaking), await own.enqueued(Note()))
    assert isinstance(outcome, Released)
    assert outcome.delay > timedelta(0)
    assert len(own.told.faults) == 1
    assert await own.rows() == 1


async def test_the_observer_is_told_the_outcome_and_what_led_to_it(bench: Bench) -> None:
    error = ValueError("no")
    outcome = await bench.run(raising(error), await bench.enqueued(Note()))
    assert bench.told.endings == [(outcome, error)]
    assert bench.told.faults == []


@pytest.mark.parametrize(
    ("error", "expected"), [(Permanent("no"), Dead), (Snooze(timedelta(hours=1)), Snoozed), (Cancel("no"), Cancelled)]
)
async def test_what_a_task_group_raises_of_one_task_means_the_same(
    bench: Bench, error: Exception, expected: type[Outcome]
) -> None:
    async def asking() -> None:
        raise error

    async def grouping(job: Note, session: AsyncSession) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asking())

    assert isinstance(await bench.run(Handler(Note, grouping), await bench.enqueued(Note())), expected)


@pytest.mark.parametrize(
    ("bound", "job"),
    [
        (partial(Handler, Note), Note()),
        (partial(BatchHandler, Note), Note()),
        (partial(ChunkedHandler, Count, cursor=int), Count()),
    ],
    ids=["one", "batch", "chunk"],
)
async def test_a_handler_that_is_no_coroutine_function_is_told_so_at_once(
    bench: Bench, bound: Callable[..., AnyHandler], job: Job
) -> None:
    def plain(*_given: object) -> None: ...

    outcome = await bench.run(bound(plain), await bench.enqueued(job))
    assert isinstance(outcome, Dead)
    assert f"The handler of {job.job_name} is no coroutine function; write async def" in outcome.error


async def test_a_chunk_s_result_that_cant_be_written_is_told_by_its_name(bench: Bench) -> None:
    result: Any = {"user": object()}

    async def last(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(None, result=result)

    outcome = await bench.run(ChunkedHandler(Count, last, cursor=int), await bench.enqueued(Count()))
    assert isinstance(outcome, Dead)
    assert "The handler's result can't be written as JSON" in outcome.error
