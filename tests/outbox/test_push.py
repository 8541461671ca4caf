"""What the relay puts into Redis: batches of rows, whatever stands there already, and when they are due."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.outbox.conftest import Psql
from tests.outbox.hands import AN_HOUR, Hands, Play, Stopped
from tests.support.reading import blocks_read, noted
from worker import brief, lanes
from worker.outbox import enqueue_many
from worker.outcome import Completed, Dead, Snoozed
from worker.push import Pusher
from worker.queue import Queue


async def test_a_batch_a_time_goes_until_nothing_is_left(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        ids = enqueue_many(session, [Play() for _ in range(1203)])
    assert await hands.relay.drain() == 1203
    assert await hands.redis.zcard("arq:queue") == 1203
    assert {row.id for row in await hands.rows("id")} == set(ids)


async def test_however_much_was_refused_it_is_not_gone_through_for_each_row(hands: Hands) -> None:
    refused = [str(number) for number in range(300_000)]
    async with brief.brief_transaction(hands.engine) as connection:
        explained = await connection.execute(text(f"explain {lanes.MARK_PLAIN.text}"), {"epoch": 1, "refused": refused})
        assert "hashed SubPlan" in "\n".join(explained.scalars())


async def test_of_a_backlog_unknown_to_the_planner_no_more_than_a_batch_is_read(hands: Hands, psql: Psql) -> None:
    psql("delete from worker.outbox", "vacuum analyze worker.outbox")
    backlog = """insert into worker.outbox (id, enqueued_ms, name, queue, message)
        select n::text, n, 'x', 'arq:queue', 'x' from generate_series(1, 20000) as n"""
    await hands.sql(backlog)
    with noted(hands.engine) as sent:
        assert (await Pusher(hands.engine, hands.redis).send_plain(1, [])).sent == lanes.BATCH
    assert await blocks_read(hands.engine, *sent) < 50 * lanes.BATCH
    await hands.redis.flushdb()


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


@pytest.fixture(params=["repeatable read", "serializable"])
async def strict(hands: Hands, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The database begins its transactions so, unless they say otherwise."""
    [[name]] = await hands.sql("select current_database()")
    await hands.sql(f"alter database {name} set default_transaction_isolation = '{request.param}'")
    await hands.engine.dispose()
    yield
    await hands.sql(f"alter database {name} reset default_transaction_isolation")
    await hands.engine.dispose()


@pytest.mark.usefixtures("strict")
async def test_it_is_waited_for_whatever_isolation_the_database_is_set_to(hands: Hands) -> None:
    """Else its mark, which was committed after the turn had begun, couldn't be taken back."""
    await Queue(hands.redis).enqueue(Play(text="direct"), job_id="j")
    await hands.enqueue(Play(text="outbox"), job_id="j")
    assert await hands.relay.drain() == 0
    [row] = await hands.rows()
    assert row.sent_epoch is None


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
