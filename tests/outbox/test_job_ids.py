"""`job_id` is an idempotency key: the same id again is a Duplicate for as long as its run is kept."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.outbox.hands import Count, Hands, Play
from worker.outbox import enqueue
from worker.outcome import Completed, Dead, Duplicate
from worker.queue import Queue
from worker.wire import Message, decode


async def test_one_job_id_sent_twenty_times_before_and_after_its_run_is_applied_once(hands: Hands) -> None:
    for number in range(10):
        await hands.enqueue(Play(text=f"before {number}"), job_id="j")
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    for number in range(10):
        await hands.enqueue(Play(text=f"after {number}"), job_id="j")
        assert await hands.work() == [Duplicate({"text": "before 0"})]
    assert await hands.applied() == ["before 0"]
    assert await hands.rows() == []


async def test_twenty_producers_at_once_send_one_job_id_and_it_is_applied_once(hands: Hands) -> None:
    async def send() -> None:
        async with AsyncSession(hands.engine) as session, session.begin():
            enqueue(session, Play(text="once"), job_id="j")

    working = asyncio.create_task(hands.work())
    await asyncio.gather(*(send() for _ in range(20)))
    await working
    await hands.work()
    assert await hands.applied() == ["once"]
    assert await hands.rows() == []


@pytest.mark.parametrize("payload", ['{"does": "what nobody knows"}', '{"n": 1e5000}'])
async def test_a_second_that_cant_be_read_leaves_the_outbox_as_any_duplicate(hands: Hands, payload: str) -> None:
    """The first is Dead for it. Else the sweep would send the second again, and again."""
    for expected in (Dead, Duplicate):
        await hands.sql(f"select worker.enqueue('test.play', '{payload}', job_id => 'j')")
        assert [type(outcome) for outcome in await hands.work()] == [expected]
    assert await hands.rows() == []


async def test_a_second_that_doesnt_fit_is_a_duplicate_of_one_that_was_done(hands: Hands) -> None:
    await hands.enqueue(Play(text="once"), job_id="j")
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    await hands.sql("select worker.enqueue('test.play', '{\"does\": \"what nobody knows\"}', job_id => 'j')")
    assert await hands.work() == [Duplicate({"text": "once"})]
    assert await hands.rows() == []


async def test_the_enqueue_time_of_a_chosen_id_is_0_in_row_message_and_run(hands: Hands) -> None:
    await hands.enqueue(Play(), job_id="j")
    await hands.relay.drain()
    [row] = await hands.rows()
    [claim] = await hands.take()
    message = decode(claim.message or b"")
    assert isinstance(message, Message)
    await hands.finish(claim)
    [run] = await hands.runs()
    assert row.enqueued_ms == message.enqueued_ms == run.enqueued_ms == 0


async def test_the_same_id_again_while_the_first_runs_or_backs_off_is_a_duplicate_afterwards(hands: Hands) -> None:
    await hands.enqueue(Play(text="first", does="snooze"), job_id="j")
    await hands.work()
    await hands.enqueue(Play(text="second"), job_id="j")
    assert await hands.work() == []
    await hands.sql("update worker.run set next_at = now()")
    await hands.redis.zadd("arq:queue", {"j": 1})
    await hands.sql("update worker.run set status = 'snoozed'")
    [claim] = await hands.take()
    await hands.sql("update worker.run set status = 'completed', finished_at = now(), result = '1', next_at = null")
    assert await hands.finish(claim) == Duplicate(1)
    assert await hands.work() == [Duplicate(1)]
    assert await hands.applied() == []
    assert await hands.rows() == []


async def test_the_same_id_again_after_it_died_is_a_duplicate_with_its_error(hands: Hands) -> None:
    await hands.enqueue(Play(text="no", does="fail"), job_id="j")
    assert isinstance((await hands.work())[-1], Dead)
    await hands.enqueue(Play(text="yes"), job_id="j")
    assert await hands.work() == [Duplicate(None, failed="ValueError: no")]
    assert await hands.applied() == []


async def test_the_same_id_again_after_its_run_was_pruned_runs_again(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), job_id="j")
    await hands.work()
    await hands.sql("delete from worker.run")
    await hands.enqueue(Play(text="second"), job_id="j")
    await hands.work()
    assert await hands.applied() == ["first", "second"]


async def test_one_id_is_one_job_whatever_it_is_called(hands: Hands) -> None:
    await hands.enqueue(Play(text="a play"), job_id="j")
    await hands.enqueue(Count(upto=3), job_id="j")
    await hands.work()
    assert await hands.applied() == ["a play"]


async def test_an_id_that_went_straight_to_redis_is_waited_for_and_runs_beside_the_other(hands: Hands) -> None:
    """They are two jobs: one is in Redis's keeping, the other in PostgreSQL's."""
    await Queue(hands.redis).enqueue(Play(text="direct"), job_id="j")
    await hands.enqueue(Play(text="outbox"), job_id="j")
    assert await hands.relay.drain() == 0
    assert [type(outcome) for outcome in await hands.work()] == [Completed, Completed]
    assert await hands.applied() == ["direct", "outbox"]


async def test_an_id_that_went_straight_to_redis_may_fail_while_the_other_s_row_is_sent(hands: Hands) -> None:
    """Its adoption adds a second row of the id, and only one of an id may be marked as sent."""
    await hands.enqueue(Play(text="outbox"), job_id="j")
    await hands.relay.drain()
    await hands.redis.flushall()
    await Queue(hands.redis).enqueue(Play(text="direct", does="fail once"), job_id="j")
    await hands.work()
    assert sorted(await hands.applied()) == ["direct", "outbox"]
    assert [run.status for run in await hands.runs()] == ["completed", "completed"]
    assert await hands.rows() == []


async def test_a_chunked_job_that_went_straight_to_redis_goes_on_while_the_other_s_row_is_sent(hands: Hands) -> None:
    await hands.enqueue(Play(text="outbox"), job_id="j")
    await hands.relay.drain()
    await hands.redis.flushall()
    await Queue(hands.redis).enqueue(Count(upto=2), job_id="j")
    await hands.work()
    assert sorted(await hands.applied()) == ["1", "2", "outbox"]
    assert await hands.rows() == []
