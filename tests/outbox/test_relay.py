"""The relay carries committed jobs from the outbox to Redis, and their rows stay until the run is final."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.outbox.conftest import Psql
from tests.outbox.hands import AN_HOUR, Count, Hands, Loose, Play, Stopped
from tests.support.types_asked import types_asked
from tests.support.waiting import wait_until
from worker import brief, database, lanes
from worker.availability import Availability
from worker.broker import connect_broker
from worker.database import connect
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.driver import SERVER_SETTINGS
from worker.epoch import current_epoch
from worker.listen import listen
from worker.outbox import enqueue, enqueue_many
from worker.outcome import Completed, Dead, Duplicate, Retrying, Snoozed, Yielded
from worker.push import Pusher
from worker.queue import Queue
from worker.relay import CHANNEL, Intervals, Relay
from worker.reporting.observer import Observers
from worker.shield import cancel_all
from worker.wire import Message, decode, encode


@asynccontextmanager
async def running(relay: Relay) -> AsyncGenerator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        await cancel_all([task])


def patient(hands: Hands, poll: timedelta) -> Relay:
    intervals = Intervals(poll=poll, settle=timedelta(0))
    return Relay(
        hands.engine, hands.redis, Availability(hands.engine), Observers(), pushed=lambda: None, intervals=intervals
    )


def is_queued(hands: Hands, job_id: str) -> Callable[[], Awaitable[bool]]:
    async def is_queued() -> bool:
        score: float | None = await hands.redis.zscore("arq:queue", job_id)
        return score is not None

    return is_queued


# --- the push ---------------------------------------------------------------------------------------------------------


async def test_a_batch_a_time_goes_until_nothing_is_left(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        ids = enqueue_many(session, [Play() for _ in range(1203)])
    assert await hands.relay.drain() == 1203
    assert await hands.redis.zcard("arq:queue") == 1203
    assert {row.id for row in await hands.rows("id")} == set(ids)


async def test_no_connection_has_to_be_asked_about_types(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = types_asked(monkeypatch)
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(3)])
        coalescing = enqueue(session, Play(), key="k")
        enqueue(session, Play(), queue="taken")
    await hands.redis.set("taken", "a text, so that a row is refused", px=60_000)
    relay = patient(hands, timedelta(milliseconds=1))
    async with running(relay):  # pushes and sweeps
        await wait_until(is_queued(hands, coalescing))
    assert await relay.drain() == 0
    assert asked == []
    async with hands.engine.connect() as connection:
        await connection.execute(text("select cast(:numbers as bigint[])"), {"numbers": [1]})
    assert asked == [1016], "an array of numbers is asked for, so the above says something"


async def test_however_much_was_refused_it_is_not_gone_through_for_each_row(hands: Hands) -> None:
    refused = [str(number) for number in range(300_000)]
    async with brief.brief_transaction(hands.engine) as connection:
        explained = await connection.execute(text(f"explain {lanes.MARK_PLAIN.text}"), {"epoch": 1, "refused": refused})
        assert "hashed SubPlan" in "\n".join(explained.scalars())


async def test_two_relays_at_once_pass_over_each_other_s_rows(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(800)])
    stopped, free = Pusher(hands.engine, hands.redis), Pusher(hands.engine, hands.redis)
    push = Stopped(stopped, after=False)
    first = asyncio.create_task(stopped.send_plain(1, []))
    await push.reached.wait()
    assert (await free.send_plain(1, [])).sent == 300
    push.go_on.set()
    assert (await first).sent == 500


async def test_a_batch_has_its_limit_in_bytes_too(hands: Hands) -> None:
    await hands.sql(
        """insert into worker.outbox (id, enqueued_ms, name, queue, message, coalesces) select n::text, n, 'x',
        'arq:queue', convert_to(repeat('x', 1048576), 'UTF8'), n > 12 from generate_series(1, 24) as n"""
    )
    pusher = Pusher(hands.engine, hands.redis)
    assert [(await pusher.send_plain(1, [])).sent for _ in range(3)] == [8, 4, 0]
    assert [(await pusher.send_coalescing(1, [])).sent for _ in range(3)] == [8, 4, 0]
    assert [(await pusher.send_again(2, [])).sent for _ in range(4)] == [8, 8, 8, 0]


async def test_the_largest_message_goes_whatever_the_limit(hands: Hands) -> None:
    await hands.sql(
        """insert into worker.outbox (id, enqueued_ms, name, queue, message) select n::text, n, 'x', 'arq:queue',
        convert_to(repeat('x', 9000000), 'UTF8') from generate_series(1, 2) as n"""
    )
    assert await hands.relay.drain() == 2


async def test_no_lane_starves_another(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(1200)])
    await hands.enqueue(Play(), key="k")
    assert [batch.sent for batch in await hands.relay._batches({})] == [500, 1]


async def test_a_message_carries_no_ttl(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play())
    await hands.relay.drain()
    assert await hands.redis.ttl(f"arq:job:{job_id}") == -1


async def test_a_push_never_resets_a_job_that_redis_already_has(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play())
    await hands.relay.drain()
    [claim] = await hands.take()
    score = await hands.redis.zscore("arq:queue", job_id)
    await hands.redis.set(f"arq:job:{job_id}", marked := b" " + (claim.message or b""))
    await hands.sql("update worker.outbox set sent_epoch = 0")
    assert await hands.relay.drain() == 1
    assert await hands.redis.zscore("arq:queue", job_id) == score
    assert await hands.redis.get(f"arq:job:{job_id}") == marked


async def test_an_id_with_another_enqueue_time_is_waited_for(hands: Hands) -> None:
    await Queue(hands.redis).enqueue(Play(text="direct"), job_id="j")
    await hands.enqueue(Play(text="outbox"), job_id="j")
    assert await hands.relay.drain() == 0
    [row] = await hands.rows()
    assert row.sent_epoch is None
    [claim] = await hands.take()
    await hands.finish(claim)
    assert await hands.relay.drain() == 1


async def test_bytes_that_nobody_can_read_are_waited_for_too(hands: Hands) -> None:
    await hands.redis.set("arq:job:j", b"\x80\x04 a pickle")
    await hands.redis.zadd("arq:queue", {"j": 1})
    await hands.enqueue(Play(text="outbox"), job_id="j")
    assert await hands.relay.drain() == 0
    assert [type(outcome) for outcome in await hands.work()] == [Dead, Completed]


async def test_a_push_deletes_an_old_result(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(), key="k")
    await hands.work()
    arq_job = ArqJob(job_id, hands.redis, _deserializer=hands.redis.job_deserializer)
    assert await arq_job.status() == JobStatus.complete
    await hands.enqueue(Play(), key="k")
    await hands.relay.drain()
    assert await arq_job.status() == JobStatus.queued


async def test_rows_that_must_wait_starve_nobody(hands: Hands) -> None:
    """More than a batch of them stand in front, in both lanes."""
    async with hands.redis.pipeline() as pipe:
        for number in range(1, 1301):
            pipe.set(f"arq:job:{number}", b'{"f":"another","et":5}')
            pipe.zadd("arq:queue", {str(number): 1})
        await pipe.execute()
    await hands.sql(
        """insert into worker.outbox (id, enqueued_ms, name, queue, message, coalesces)
        select n::text, n * 10, 'x', 'arq:queue', '', n > 650 from generate_series(1, 1300) as n"""
    )
    [plain, keyed] = await hands.enqueue(Play()) + await hands.enqueue(Play(), key="k")
    assert await hands.relay.drain() == 2
    assert await hands.redis.exists(f"arq:job:{plain}", f"arq:job:{keyed}") == 2
    assert len([row for row in await hands.rows("sent_epoch") if row.sent_epoch is None]) == 1300


async def test_more_of_them_than_a_turn_takes_starve_nobody_either(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.relay.ROUNDS", 1)
    await hands.redis.set("taken", "a string", ex=60)
    await hands.enqueue(*[Play() for _ in range(1200)], queue="taken")
    await hands.enqueue(Play())
    assert [await hands.relay.drain() for _ in range(4)] == [0, 0, 1, 0]
    await hands.redis.delete("taken")
    assert sum([await hands.relay.drain() for _ in range(3)]) == 1200


async def test_a_queue_whose_name_is_another_key_s_holds_up_nobody(hands: Hands) -> None:
    await hands.redis.set("taken", "a string", ex=60)
    [odd] = await hands.enqueue(Play(), queue="taken")
    await hands.enqueue(Play(text="next"))
    assert await hands.relay.drain() == 1
    await hands.work()
    assert await hands.applied() == ["next"]
    assert await hands.redis.exists(f"arq:job:{odd}") == 0


async def test_a_message_s_key_that_is_no_string_holds_up_nobody(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(text="mine"))
    await hands.redis.sadd(f"arq:job:{job_id}", "a set")  # type: ignore[misc]  # redis-py's types are those of both clients
    await hands.work()
    assert await hands.applied() == ["mine"]


async def test_a_message_that_nobody_can_read_is_dead_once_and_its_row_is_taken(hands: Hands) -> None:
    """SQL may enqueue what Python can't read, such as lists in lists in lists."""
    await hands.sql(
        "select worker.enqueue('test.play', jsonb_build_object('text', (repeat('[', 300) || repeat(']', 300))::jsonb))"
    )
    assert [type(outcome) for outcome in await hands.work()] == [Dead]
    assert await hands.rows() == []
    assert [(run.status, run.name) for run in await hands.runs()] == [("dead", "?")]


async def test_the_relay_sends_redis_now_plus_what_is_left_by_postgresql_s_clock(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(), delay=AN_HOUR)
    [before] = await hands.sql(
        "select 1000 * extract(epoch from due_at - clock_timestamp()) as left from worker.outbox"
    )
    redis_before = await _redis_ms(hands)
    await hands.relay.drain()
    [after] = await hands.sql("select 1000 * extract(epoch from due_at - clock_timestamp()) as left from worker.outbox")
    redis_after = await _redis_ms(hands)
    score = await hands.redis.zscore("arq:queue", job_id)
    assert redis_before + float(after.left) <= score <= redis_after + float(before.left) + 1


async def test_what_is_overdue_is_sent_as_due_now(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(), delay=-AN_HOUR)
    before = await _redis_ms(hands)
    await hands.relay.drain()
    assert before <= await hands.redis.zscore("arq:queue", job_id) <= await _redis_ms(hands)


async def test_nothing_is_sent_before_the_run_s_next_at(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(does="snooze"))
    assert [type(outcome) for outcome in await hands.work()] == [Snoozed]
    await hands.redis.flushall()
    before = await _redis_ms(hands)
    await hands.relay.drain()
    assert await hands.redis.zscore("arq:queue", job_id) > before + 59 * 60 * 1000
    assert await hands.work() == []


async def _redis_ms(hands: Hands) -> int:
    seconds, micros = cast("tuple[int, int]", await hands.redis.time())
    return seconds * 1000 + micros // 1000


# --- the row ----------------------------------------------------------------------------------------------------------


async def test_a_row_stays_until_the_transaction_that_makes_the_run_final(hands: Hands) -> None:
    await hands.enqueue(Play(does="fail once"))
    await hands.relay.drain()
    [claim] = await hands.take()
    assert isinstance(await hands.finish(claim), Retrying)
    [row] = await hands.rows()
    assert row.sent_epoch is not None
    [claim] = await hands.take()
    assert isinstance(await hands.carry_out(claim), Completed)
    assert await hands.rows() == []


async def test_a_chunked_job_s_row_is_taken_by_its_last_chunk(hands: Hands) -> None:
    await hands.enqueue(Count(upto=3))
    await hands.relay.drain()
    await hands.sql(
        """create function keep_count() returns trigger language plpgsql as $$ begin
        insert into applied (noted) select 'rows: ' || count(*) from worker.outbox; return null; end $$;
        """
    )
    await hands.sql("create trigger t after update on worker.run for each statement execute function keep_count()")
    try:
        await hands.work()
    finally:
        await hands.sql("drop function keep_count cascade")
    assert [noted for noted in await hands.applied() if noted.isdigit()] == ["1", "2", "3"]
    assert await hands.rows() == []
    assert (await hands.applied()).count("rows: 1") >= 2


@pytest.mark.parametrize("does", ["fail", "cancel"])
async def test_a_dead_and_a_cancelled_job_s_row_is_taken_too(hands: Hands, does: Any) -> None:
    await hands.enqueue(Play(does=does))
    await hands.work()
    assert await hands.rows() == []


async def test_a_duplicate_s_row_is_taken_too(hands: Hands) -> None:
    await hands.enqueue(Play(text="once"))
    await hands.relay.drain()
    [row], [claim] = await hands.rows(), await hands.take()
    await hands.carry_out(claim)
    await hands.sql(
        "insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, sent_at)"
        " values (:id, :ms, 'test.play', 'arq:queue', '', 1, now())",
        id=row.id,
        ms=row.enqueued_ms,
    )
    assert isinstance(await hands.finish(claim), Duplicate)
    assert await hands.rows() == []


async def test_a_row_is_taken_by_id_and_enqueue_time_never_by_id_alone(hands: Hands) -> None:
    await hands.enqueue(Play(text="mine"))
    await hands.relay.drain()
    await hands.sql(
        "insert into worker.outbox (id, enqueued_ms, name, queue, message)"
        " select id, enqueued_ms + 1, name, queue, message from worker.outbox"
    )
    [claim] = await hands.take()
    await hands.finish(claim)
    [row] = await hands.rows()
    assert row.enqueued_ms == _ms(claim.message) + 1


async def test_a_job_that_keeps_no_run_has_its_row_taken_before_redis_is_told(hands: Hands) -> None:
    await hands.enqueue(Loose())
    await hands.relay.drain()
    [claim] = await hands.take()
    await hands.carry_out(claim)
    assert await hands.rows() == []
    assert await hands.runs() == []


async def test_a_job_that_keeps_no_run_has_an_open_run_completed(hands: Hands) -> None:
    """It failed before, so there is one."""
    await hands.enqueue(Loose(fails=True))
    await hands.relay.drain()
    [claim] = await hands.take()
    assert isinstance(await hands.finish(claim), Retrying)
    [row] = await hands.rows()
    await hands.redis.set(f"arq:job:{row.id}", encode(Message("test.loose", b"{}", row.enqueued_ms, from_outbox=True)))
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    assert await hands.rows() == []
    assert [run.status for run in await hands.runs()] == ["completed"]


async def test_a_delivery_from_the_outbox_that_has_neither_run_nor_row_is_a_duplicate(hands: Hands) -> None:
    await hands.enqueue(Play())
    await hands.relay.drain()
    await hands.sql("delete from worker.outbox")
    assert await hands.work() == [Duplicate()]
    assert await hands.applied() == []


async def test_a_direct_job_s_first_failure_makes_it_the_outbox_s(hands: Hands) -> None:
    await Queue(hands.redis).enqueue(Play(text="mine", does="snooze once"))
    [claim] = await hands.take()
    assert isinstance(await hands.finish(claim), Snoozed)
    [row] = await hands.rows()
    message = decode(await hands.redis.get(f"arq:job:{claim.job_id}") or b"")
    assert isinstance(message, Message)
    assert (row.sent_epoch, message.from_outbox) == (1, True)
    await hands.redis.flushall()
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    assert await hands.rows() == []


async def test_a_direct_job_s_first_chunk_makes_it_the_outbox_s(hands: Hands) -> None:
    await Queue(hands.redis).enqueue(Count(upto=2))
    [claim] = await hands.take()
    await hands.sql("create function stop_here() returns trigger language plpgsql as $$ begin raise 'no'; end $$")
    await hands.sql(
        "create trigger t before update on worker.run for each row when (old.done = 1) execute function stop_here()"
    )
    try:
        assert isinstance(await hands.carry_out(claim), Retrying | Yielded | Dead) or await hands.rows()
    finally:
        await hands.sql("drop function stop_here cascade")
    assert len(await hands.rows()) == 1
    await hands.redis.flushall()
    await hands.work()
    assert await hands.applied() == ["1", "2"]


def _ms(message: bytes | None) -> int:
    decoded = decode(message or b"")
    assert isinstance(decoded, Message)
    return decoded.enqueued_ms


# --- waking and waiting -----------------------------------------------------------------------------------------------


async def test_a_commit_wakes_the_relay_by_notify(hands: Hands, database_url: str) -> None:
    relay = patient(hands, poll=AN_HOUR)
    listening = asyncio.create_task(listen(database_url, {CHANNEL: relay.wake}, "test listens"))
    async with running(relay):
        [job_id] = await hands.enqueue(Play())
        await wait_until(is_queued(hands, job_id))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_a_statement_notifies_once_whatever_it_adds_and_the_payload_is_constant(
    hands: Hands, database_url: str
) -> None:
    heard: list[object] = []

    def hear(*told: object) -> None:
        heard.append(told[-1])

    connection = await connect(database_url, "test listens")
    await connection.add_listener(CHANNEL, hear)
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(1500)])
    await hands.sql("notify ratchet_outbox, 'the end'")

    async def all_is_heard() -> bool:
        return "the end" in heard

    await wait_until(all_is_heard)
    assert heard == ["", "the end"]
    await connection.close()


async def test_without_notify_the_poll_is_the_net(hands: Hands, psql: Psql, outbox_database: str) -> None:
    await asyncio.to_thread(psql, f"alter database {outbox_database} set worker.notify = 'off'")
    try:
        heard = await asyncio.to_thread(
            psql, "listen ratchet_outbox; select worker.enqueue('test.play', '{}', job_id => 'j'); select 1"
        )
        assert "notification" not in heard
        async with running(patient(hands, poll=timedelta(milliseconds=20))):
            await wait_until(is_queued(hands, "j"))
    finally:
        await asyncio.to_thread(psql, f"alter database {outbox_database} reset worker.notify")


async def test_an_acknowledgement_wakes_the_relay_for_a_job_that_waited_for_it(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(text="second"), key="k")
    [claim] = await hands.take()
    hands.relay = patient(hands, poll=AN_HOUR)

    async def the_relay_has_looked() -> bool:
        return claim.job_id in hands.relay._waiting

    async with running(hands.relay):
        await wait_until(the_relay_has_looked)
        await hands.finish(claim)
        await wait_until(is_queued(hands, claim.job_id))


async def test_the_relay_outlives_redis_s_absence(hands: Hands, valkey: EmbeddedValkey) -> None:
    await asyncio.to_thread(valkey.stop)
    async with running(patient(hands, poll=timedelta(milliseconds=20))):
        [job_id] = await hands.enqueue(Play())
        await asyncio.to_thread(valkey.start)
        await wait_until(is_queued(hands, job_id))


async def test_the_relay_outlives_postgresql_s_absence(hands: Hands, postgres: EmbeddedPostgres) -> None:
    relay = patient(hands, poll=timedelta(milliseconds=20))
    async with running(relay):
        await asyncio.to_thread(postgres.stop)

        async def it_is_noticed() -> bool:
            return not relay._availability.is_up()

        await wait_until(it_is_noticed)
        await asyncio.to_thread(postgres.start)
        await hands.engine.dispose()
        [job_id] = await hands.enqueue(Play())
        await wait_until(is_queued(hands, job_id))


# --- a relay that is stopped ------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL ends an idle transaction of the relay after 5 s; the tests needn't wait so long."""
    assert brief.IDLE_LIMIT_MS == 5_000
    monkeypatch.setattr(brief, "IDLE_LIMIT_MS", 150)


async def test_a_relay_stopped_with_rows_in_its_hands_holds_up_nobody(hands: Hands, impatient: None) -> None:
    await hands.enqueue(Play(text="mine"))
    stopped = Pusher(hands.engine, hands.redis)
    push = Stopped(stopped, after=False)
    first = asyncio.create_task(stopped.send_plain(1, []))
    await push.reached.wait()

    async def another_sends_it() -> bool:
        return await hands.relay.drain() == 1

    await wait_until(another_sends_it)
    await hands.work()
    push.go_on.set()
    with pytest.raises(DBAPIError):
        await first
    # What it pushed when it woke has been done: a duplicate.
    assert await hands.work() == [Duplicate({"text": "mine"})]
    assert await hands.applied() == ["mine"]


async def test_a_relay_stopped_in_its_turn_holds_up_nobody(hands: Hands, impatient: None) -> None:
    epoch = await current_epoch(hands.engine, hands.redis)
    await hands.enqueue(Play(text="mine"), key="k")
    stopped = Pusher(hands.engine, hands.redis)
    push = Stopped(stopped, after=False)
    first = asyncio.create_task(stopped.send_coalescing(epoch.number, []))
    await push.reached.wait()
    await hands.enqueue(Play(text="another's"), key="l")
    assert await hands.relay.drain() == 1
    assert await hands.relay._sweep.step() == 1
    await hands.work()
    push.go_on.set()
    with pytest.raises(DBAPIError):
        await first
    assert await hands.work() == [Duplicate({"text": "mine"})]
    assert sorted(await hands.applied()) == ["another's", "mine"]


async def test_a_relay_that_was_stopped_and_overtaken_takes_no_mark_back(hands: Hands, impatient: None) -> None:
    """Were the row unsent again while its job is in Redis, the run's end would leave it, and it would run twice."""
    epoch = await current_epoch(hands.engine, hands.redis)
    await Queue(hands.redis).enqueue(Play(text="direct"), job_id="j")
    await hands.enqueue(Play(text="outbox"), job_id="j")
    stopped = Pusher(hands.engine, hands.redis)
    push = Stopped(stopped, after=True)
    first = asyncio.create_task(stopped.send_coalescing(epoch.number, []))
    await push.reached.wait()
    [claim] = await hands.take()
    await hands.finish(claim)

    async def the_turn_is_over() -> bool:
        try:
            return await hands.relay._sweep.step() == 1
        except DBAPIError:
            return False

    await wait_until(the_turn_is_over)
    push.go_on.set()
    with pytest.raises(DBAPIError):
        await first
    [row] = await hands.rows()
    assert row.sent_epoch is not None
    await hands.work()
    assert await hands.applied() == ["direct", "outbox"]


async def test_a_relay_stopped_while_it_raises_the_epoch_holds_up_nobody(
    hands: Hands, impatient: None, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def stop(*_: object) -> None:
        reached.set()
        await go_on.wait()

    other = connect_broker(redis_url)
    monkeypatch.setattr(other, "set", stop)
    stopped = asyncio.create_task(current_epoch(hands.engine, other))
    await reached.wait()
    await hands.enqueue(Play())
    assert await hands.relay.drain() == 1
    go_on.set()
    with pytest.raises(DBAPIError):
        await stopped
    await other.aclose()


async def test_a_relay_that_waits_in_vain_for_its_turn_has_marked_nothing_and_needs_no_sweep(
    hands: Hands, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hands.enqueue(Play(), key="k")
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "50")
    hasty = database.create_engine(database_url, pool_size=3)
    relay = Relay(hasty, hands.redis, Availability(hasty), Observers(), pushed=lambda: None)
    relay._sweep._is_wanted = False
    async with brief.turn(hands.engine):
        with pytest.raises(DBAPIError, match="lock timeout"):
            await relay.drain()
    assert not relay._sweep._is_wanted
    assert await relay.drain() == 1
    await hasty.dispose()


async def test_many_relays_at_once_send_everything_once(engine: AsyncEngine, broker: ArqRedis, hands: Hands) -> None:
    relays = [patient(hands, poll=AN_HOUR) for _ in range(3)]
    async with AsyncSession(engine) as session, session.begin():
        enqueue_many(session, [Play(text=str(number)) for number in range(30)])
    for number in range(30):
        await hands.enqueue(Play(text=f"k{number}"), key=str(number % 10))
    counts = await asyncio.gather(*(relay.drain() for relay in relays))
    assert sum(counts) == 40
    await hands.work()
    assert len(await hands.applied()) == 40
