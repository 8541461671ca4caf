"""Replay, discard and cancel, on the real ledger: each changes a job once, and no job is lost or done twice by it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.cli.app import GATE, Count, Fail, Greet, Later, Ping, Wait, app
from tests.conftest import StartWorker
from tests.support.reading import blocks_read, noted
from tests.support.waiting import wait_until
from worker import wire
from worker.availability import Availability
from worker.cancel import Asked, cancel
from worker.database import create_engine
from worker.delivery import Delivery, NoHold
from worker.executor import Executor
from worker.job import DEFAULT_QUEUE, Job
from worker.operations import (
    BATCH,
    Done,
    UnknownIdError,
    Wanted,
    WrongStatusError,
    discard,
    discard_all,
    replay,
    replay_all,
)
from worker.outbox import enqueue
from worker.outcome import Completed, Dead, Duplicate, Outcome, Snoozed
from worker.queue import Queue
from worker.relay import Relay
from worker.reporting.observer import Observers
from worker.testing import drain
from worker.wire import Message, decode, encode

QUEUES = (DEFAULT_QUEUE, "slow")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=6)
    yield engine
    await engine.dispose()


async def add(engine: AsyncEngine, job: Job, **options: Any) -> str:
    async with AsyncSession(engine) as session, session.begin():
        return enqueue(session, job, **options)


async def work(engine: AsyncEngine) -> list[Outcome]:
    """Run what is due in the outbox, without Redis."""
    return [outcome for _, outcome in await drain(app, engine)]


async def deliver(engine: AsyncEngine, job_id: str, message: bytes) -> Outcome:
    """One delivery, as Redis makes it."""
    availability = Availability(engine)
    executor = Executor(app.handlers, engine, Observers(), availability, "a test")
    try:
        return (await executor.execute(Delivery(job_id, DEFAULT_QUEUE, message, NoHold(), 0, 0))).outcome
    finally:
        await availability.close()


async def relay(engine: AsyncEngine, redis: Redis) -> None:
    """Send what is in the outbox."""
    availability = Availability(engine)
    await Relay(engine, redis, availability, Observers(), pushed=lambda: None).drain()
    await availability.close()


async def rows(engine: AsyncEngine, statement: str, **values: object) -> list[Any]:
    async with engine.begin() as connection:
        return list((await connection.execute(text(statement), values)).all())


async def status(engine: AsyncEngine, job_id: str) -> list[str]:
    """Of every run of this id, oldest first."""
    found = await rows(engine, "select status from worker.run where id = :id order by created_at", id=job_id)
    return [row.status for row in found]


async def outbox(engine: AsyncEngine) -> list[Any]:
    return await rows(engine, "select * from worker.outbox order by seq")


async def let_pass(engine: AsyncEngine, database_url: str) -> None:
    """Mend what stops `tests.count`, for connections made from now on."""
    name = database_url.split("/")[3].split("?", maxsplit=1)[0]
    async with engine.begin() as connection:
        await connection.execute(text(f"alter database {name} set tests.may_pass = 'on'"))
    await engine.dispose()


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_a_replayed_job_runs_again_under_its_identity_with_all_its_attempts(engine: AsyncEngine) -> None:
    job_id = await add(engine, Fail())
    [dead] = await work(engine)
    assert isinstance(dead, Dead)
    [before] = await rows(engine, "select * from worker.run")
    assert await replay(engine, job_id) == Done(job_id, "tests.fail")
    [run] = await rows(engine, "select * from worker.run")
    assert (run.status, run.attempt, run.error, run.finished_at, run.from_outbox) == ("waiting", 0, None, None, True)
    [row] = await outbox(engine)
    assert (row.id, row.enqueued_ms, row.coalesces, row.sent_epoch) == (job_id, before.enqueued_ms, False, None)
    assert row.message == before.message
    assert [type(outcome) for outcome in await work(engine)] == [Dead]
    assert await status(engine, job_id) == ["dead"]


async def test_replaying_twice_runs_once(engine: AsyncEngine) -> None:
    job_id = await add(engine, Fail())
    await work(engine)
    replayed = await asyncio.gather(*(replay(engine, job_id) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(each, Done) for each in replayed) == 1
    refused = [str(each) for each in replayed if isinstance(each, WrongStatusError)]
    assert refused == [f"The job {job_id} is waiting; only a dead one can be replayed or discarded."] * 3
    assert len(await work(engine)) == 1


async def test_many_who_replay_all_at_once_replay_each_job_once(engine: AsyncEngine) -> None:
    ids = {await add(engine, Fail()) for _ in range(20)}
    await work(engine)
    replayed = await asyncio.gather(*(replay_all(engine, Wanted(error="it can't")) for _ in range(4)))
    assert sorted(done.job_id for part in replayed for done in part) == sorted(ids)
    assert len(await outbox(engine)) == 20
    assert len(await work(engine)) == 20


async def test_a_chunked_job_is_replayed_from_its_cursor(engine: AsyncEngine, database_url: str) -> None:
    job_id = await add(engine, Count(to=40, stop=20))
    await work(engine)
    await replay(engine, job_id)
    await let_pass(engine, database_url)
    assert await work(engine) == [Completed({"counted": 40})]
    [run] = await rows(engine, "select done, (select count(*) from worker.reject) as rejects from worker.run")
    assert (run.done, run.rejects) == (40, 4)  # no chunk ran twice


async def test_a_direct_job_comes_back_through_the_outbox(engine: AsyncEngine) -> None:
    message = encode(Message("tests.fail", b"{}", 1_700_000_000_000, headers={"sentry-trace": "one"}))
    await deliver(engine, "direct", message)
    assert await replay(engine, "direct") == Done("direct", "tests.fail")
    [row] = await outbox(engine)
    sent = decode(row.message)
    assert sent == Message("tests.fail", b"{}", 1_700_000_000_000, from_outbox=True, headers={"sentry-trace": "one"})
    # Redis may still have the message as it was first sent: either delivery ends the one run, and takes the row.
    assert isinstance(await deliver(engine, "direct", message), Dead)
    assert await outbox(engine) == []
    assert isinstance(await deliver(engine, "direct", row.message), Duplicate)
    assert await status(engine, "direct") == ["dead"]


async def test_an_unreadable_message_is_replayed_as_it_is(engine: AsyncEngine) -> None:
    pickle = b"\x80\x04\x95no json"
    assert isinstance(await deliver(engine, "pickled", pickle), Dead)
    await replay(engine, "pickled")
    [row] = await outbox(engine)
    assert row.message == pickle
    assert isinstance(await deliver(engine, "pickled", row.message), Dead)
    assert await outbox(engine) == []
    assert await status(engine, "pickled") == ["dead"]


async def test_a_message_that_a_later_version_can_read_runs_when_it_is_replayed(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = encode(Message("tests.greet", b'{"name":"Ada"}', 5))
    with monkeypatch.context() as earlier:
        earlier.setattr(wire, "MAX_MESSAGE_BYTES", 10)
        assert isinstance(await deliver(engine, "greeted", message), Dead)
    await replay(engine, "greeted")
    [row] = await outbox(engine)
    assert (row.enqueued_ms, row.name) == (5, "tests.greet")
    assert await work(engine) == [Completed({"greeting": "hello Ada"})]
    assert await outbox(engine) == []
    runs = await rows(engine, "select enqueued_ms, status, message from worker.run order by enqueued_ms")
    assert [(run.enqueued_ms > 0, run.status) for run in runs] == [(False, "discarded"), (True, "completed")]
    assert bytes(runs[0].message) == message
    assert await deliver(engine, "greeted", message) == Duplicate({"greeting": "hello Ada"})


async def test_replay_all_takes_every_dead_job_that_nothing_newer_replaces(engine: AsyncEngine) -> None:
    failed = [await add(engine, Fail()) for _ in range(3)]
    replaced = await add(engine, Count(to=20, stop=0), key="all")
    await work(engine)
    assert await add(engine, Count(to=20), key="all") == replaced
    assert {done.job_id for done in await replay_all(engine)} == set(failed)
    await work(engine)
    assert await status(engine, replaced) == ["dead", "completed"]
    assert {done.job_id for done in await replay_all(engine)} == set(failed)
    assert await replay_all(engine) == []


async def test_discard_all_takes_every_dead_job_that_is_meant_with_those_that_a_newer_one_replaces(
    engine: AsyncEngine,
) -> None:
    failed = {await add(engine, Fail(reason=f"no {number}")) for number in range(BATCH + 20)}
    kept = await add(engine, Fail(reason="another"))
    replaced = await add(engine, Count(to=20, stop=0), key="all")
    await work(engine)
    await add(engine, Count(to=20), key="all")
    discarded = await asyncio.gather(*(discard_all(engine, Wanted(name="tests.fail", error="no ")) for _ in range(3)))
    assert sorted(done.job_id for part in discarded for done in part) == sorted(failed)
    assert await status(engine, kept) == ["dead"]
    await replay(engine, kept)  # it waits now, so it isn't dead
    assert await discard_all(engine) == [Done(replaced, "tests.count")]
    assert {type(outcome) for outcome in await work(engine)} == {Dead, Completed}
    assert await status(engine, replaced) == ["discarded", "completed"]


async def test_a_dead_job_that_a_newer_one_of_its_key_replaced_is_replayed_where_it_is_named(
    engine: AsyncEngine, database_url: str
) -> None:
    job_id = await add(engine, Count(to=20, stop=10), key="all")
    await work(engine)
    await add(engine, Count(to=30), key="all")
    await work(engine)
    await let_pass(engine, database_url)
    assert await replay(engine, job_id) == Done(job_id, "tests.count")
    assert await work(engine) == [Completed({"counted": 20})]
    runs = await rows(engine, "select status, done from worker.run order by enqueued_ms")
    assert [tuple(run) for run in runs] == [("completed", 20), ("completed", 30)]
    with pytest.raises(WrongStatusError, match="is completed; only a dead one"):
        await replay(engine, job_id)


async def test_every_dead_job_of_an_id_can_be_discarded(engine: AsyncEngine) -> None:
    job_id = await add(engine, Fail(), key="it")
    await work(engine)
    assert await add(engine, Fail(), key="it") == job_id
    await work(engine)
    await add(engine, Fail(), key="it")
    for _ in range(2):
        await discard(engine, job_id)
    assert await status(engine, job_id) == ["discarded", "discarded"]
    with pytest.raises(WrongStatusError, match="is waiting; only a dead one"):
        await discard(engine, job_id)


async def test_what_isnt_dead_cant_be_replayed_or_discarded(engine: AsyncEngine) -> None:
    greeted, later = await add(engine, Greet(name="Ada")), await add(engine, Later())
    await work(engine)
    waiting = await add(engine, Greet(name="Bob"))
    for job_id, told in ((greeted, "completed"), (later, "snoozed"), (waiting, "waiting")):
        for operation in (replay, discard):
            with pytest.raises(WrongStatusError, match=f"{job_id} is {told}; only a dead one"):
                await operation(engine, job_id)
    for operation in (replay, discard):
        with pytest.raises(UnknownIdError, match="No job has the id 'nobody'"):
            await operation(engine, "nobody")


async def test_a_discarded_job_is_final(engine: AsyncEngine) -> None:
    job_id = await add(engine, Fail())
    await work(engine)
    assert await discard(engine, job_id) == Done(job_id, "tests.fail")
    with pytest.raises(WrongStatusError, match="is discarded"):
        await replay(engine, job_id)
    assert await replay_all(engine) == []
    [run] = await rows(engine, "select error, message is not null as kept from worker.run")
    assert (run.error, run.kept) == ("Permanent: it can't be done", True)


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_job_that_wasnt_sent_yet_never_runs_once_it_is_cancelled(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await add(engine, Greet(name="Ada"))
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert await work(engine) == []
    [run] = await rows(engine, "select status, error, message is not null as kept, finished_at from worker.run")
    assert (run.status, run.error, run.kept) == ("cancelled", "cancelled on request", True)
    with pytest.raises(WrongStatusError, match="is cancelled already; only one that isn't final can be cancelled"):
        await cancel(engine, redis, job_id, QUEUES)


@pytest.mark.parametrize("options", [{}, {"key": "ada"}, {"job_id": "ada"}])
async def test_a_sent_job_is_taken_out_of_redis(engine: AsyncEngine, redis: Redis, options: dict[str, str]) -> None:
    job_id = await add(engine, Greet(name="Ada"), **options)
    await relay(engine, redis)
    message: bytes | None = await redis.get(f"arq:job:{job_id}")
    assert message is not None
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert await redis.keys("arq:*") == []
    assert await outbox(engine) == []
    # A worker had taken it, perhaps, before its message was gone.
    late = await deliver(engine, job_id, message)
    assert isinstance(late, Duplicate)
    assert "cancelled on request" in (late.failed or "")


async def test_a_job_that_backs_off_or_snoozes_can_be_cancelled(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await add(engine, Later())
    await relay(engine, redis)
    assert [type(outcome) for outcome in await work(engine)] == [Snoozed]
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.later")
    assert (await status(engine, job_id), await outbox(engine)) == (["cancelled"], [])
    assert await redis.keys("arq:*") == []


async def test_an_abort_that_nobody_has_heard_yet_ends_with_the_job_that_is_cancelled(
    engine: AsyncEngine, redis: Redis
) -> None:
    """It backed off, or was delayed, when arq's client asked for it; the next job of its key is another one."""
    job_id = await add(engine, Greet(name="one"), key="ada")
    await relay(engine, redis)
    await redis.zadd("arq:abort", {job_id: 1})
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert await redis.keys("arq:*") == []


async def test_a_direct_job_that_only_redis_knows_can_be_cancelled(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await Queue(redis, "slow").enqueue(Wait(), job_id="direct")
    assert job_id is not None
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.wait")
    assert await redis.keys("arq:*") == []
    [run] = await rows(engine, "select status, from_outbox, queue from worker.run")
    assert (run.status, run.from_outbox, run.queue) == ("cancelled", False, "slow")
    with pytest.raises(UnknownIdError):
        await cancel(engine, redis, "nobody", QUEUES)


async def test_cancelling_a_key_takes_all_that_would_be_its_next_run_and_nothing_else(
    engine: AsyncEngine, redis: Redis
) -> None:
    job_id = await add(engine, Greet(name="one"), key="ada")
    await relay(engine, redis)
    for name in ("two", "three"):
        assert await add(engine, Greet(name=name), key="ada") == job_id
    first: bytes = await redis.get(f"arq:job:{job_id}")
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert await redis.get(f"arq:job:{job_id}") == first  # the job in front of them is another one
    assert await deliver(engine, job_id, first) == Completed({"greeting": "hello one"})
    assert await work(engine) == []
    await add(engine, Greet(name="four"), key="ada")
    assert await work(engine) == [Completed({"greeting": "hello four"})]
    assert sorted(await status(engine, job_id)) == ["cancelled", "completed", "completed"]


async def test_a_cancelled_job_and_its_last_run_are_never_one_run(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await add(engine, Greet(name="one"), key="ada")
    await work(engine)
    await rows(
        engine, "update worker.run set enqueued_ms = enqueued_ms + 60000 returning id"
    )  # by a clock that is ahead
    await add(engine, Greet(name="two"), key="ada")
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert await status(engine, job_id) == ["completed", "cancelled"]
    assert await work(engine) == []


async def test_many_who_cancel_at_once_end_it_once(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await add(engine, Greet(name="Ada"))
    done = await asyncio.gather(*(cancel(engine, redis, job_id, QUEUES) for _ in range(4)), return_exceptions=True)
    assert [each for each in done if isinstance(each, Done)] == [Done(job_id, "tests.greet")]
    assert sum(isinstance(each, WrongStatusError) for each in done) == 3


async def test_a_running_job_is_asked_to_abort(
    engine: AsyncEngine, redis: Redis, database_url: str, start_worker: StartWorker
) -> None:
    async with engine.connect() as gate:
        await gate.execute(text("select pg_advisory_lock(:gate)"), {"gate": GATE})
        job_id = await add(engine, Wait())
        worker = await start_worker("run", "--queue", "slow", WORKER_APP="tests.cli.app:app")

        async def is_running() -> bool:
            waits = "select 1 from pg_locks where locktype = 'advisory' and not granted"
            return bool(await rows(engine, waits))

        await wait_until(is_running, timeout=30)
        assert await cancel(engine, redis, job_id, QUEUES) == Asked(job_id, "tests.wait")
        await worker.wait_for("cancelled", job_id=job_id)
    await worker.stop()
    [run] = await rows(engine, "select status, error from worker.run")
    assert (run.status, run.error) == ("cancelled", "aborted")
    assert await outbox(engine) == []


async def test_a_job_in_a_workers_hands_is_cancelled_and_its_worker_told(engine: AsyncEngine, redis: Redis) -> None:
    """Between two chunks, say, or where the handler keeps no run: the lock is to be had, the message isn't."""
    job_id = await add(engine, Ping())
    await relay(engine, redis)
    await redis.set(f"arq:in-progress:{job_id}", "somebody", px=60_000)
    assert await cancel(engine, redis, job_id, QUEUES) == Asked(job_id, "tests.ping")
    assert await status(engine, job_id) == ["cancelled"]
    assert await redis.zrange("arq:abort", 0, -1) == [job_id.encode()]
    assert await redis.exists(f"arq:job:{job_id}")


async def test_a_delayed_job_can_be_cancelled_before_it_is_due(engine: AsyncEngine, redis: Redis) -> None:
    job_id = await add(engine, Greet(name="Ada"), delay=timedelta(days=1))
    await relay(engine, redis)
    assert await cancel(engine, redis, job_id, QUEUES) == Done(job_id, "tests.greet")
    assert (await redis.keys("arq:*"), await outbox(engine)) == ([], [])


@pytest.mark.parametrize("meant", [replay_all, discard_all])
async def test_dead_jobs_that_are_not_meant_are_gone_through_once_and_not_for_each_batch(
    engine: AsyncEngine, meant: Callable[[AsyncEngine, Wanted], Awaitable[list[Done]]]
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            text("""
            insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, error, message, finished_at)
            select n::text, n, 'any', 'arq:queue', 'dead', true,
                case when n <= 5000 then 'other ' || repeat('x', 900) else 'boom' end, 'x',
                now() - make_interval(secs => 10000 - n)
            from generate_series(1, 5250) as n
            """)
        )
    with noted(engine) as sent:
        assert len(await meant(engine, Wanted(error="boom"))) == 250
    last = [each for each in sent if "skip locked" in each.statement][-1]
    assert await blocks_read(engine, last) < 300
