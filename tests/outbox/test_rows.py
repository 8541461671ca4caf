"""A row of the outbox stays until the transaction that makes its run final."""

from typing import Any

import pytest

from tests.outbox.hands import Count, Hands, Loose, Play
from worker.outcome import Completed, Dead, Duplicate, Retrying, Snoozed, Yielded
from worker.queue import Queue
from worker.wire import Message, decode, encode


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
