"""`key` coalesces pending work, and all of it is decided in PostgreSQL."""

import asyncio
from datetime import timedelta

from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.outbox.hands import AN_HOUR, Count, Hands, Loose, Play, Stage, Stopped
from tests.support.reading import blocks_read, noted
from worker.epoch import current_epoch
from worker.limits import Rate
from worker.operations import replay, replay_all
from worker.outbox import coalescing_id, enqueue
from worker.outcome import Completed, Dead, Duplicate, Retrying, Snoozed
from worker.push import Pusher
from worker.wire import Message, decode, encode

ID = coalescing_id("test.play", "k")


async def _same_millisecond(hands: Hands) -> None:
    """Make all unsent rows as if they had been enqueued in the millisecond of the first."""
    await hands.sql(
        "update worker.outbox set enqueued_ms = (select min(enqueued_ms) from worker.outbox) where sent_epoch is null"
    )


async def test_of_several_unsent_rows_the_newest_stays_with_the_earliest_due_time(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k", delay=timedelta(seconds=-10))
    await hands.enqueue(Play(text="second"), Play(text="newest"), key="k", delay=AN_HOUR)
    [earliest] = await hands.sql("select min(due_at) from worker.outbox")
    assert await hands.relay.drain() == 1
    [row] = await hands.rows()
    assert row.due_at == earliest[0]
    await hands.work()
    assert await hands.applied() == ["newest"]


async def test_a_dead_job_that_is_replayed_for_later_still_comes_before_a_fresh_one_of_its_key(hands: Hands) -> None:
    """Which waits for it: else the old payload would have the last word."""
    for keyed in ({}, {"key": "k"}):
        await hands.enqueue(Play(text="old", does="fail"), **keyed)
        assert isinstance((await hands.work())[-1], Dead)
    assert len(await replay_all(hands.engine, rate=Rate(1, AN_HOUR))) == 2
    await hands.enqueue(Play(text="new"), key="k")
    await hands.work()
    assert await hands.applied() == []
    await hands.sql("update worker.run set next_at = now()")
    await hands.redis.zadd("arq:queue", {ID: 1})
    outcomes = await hands.work()
    assert [type(outcome) for outcome in outcomes[-2:]] == [Dead, Completed]
    assert await hands.applied() == ["new"]


async def test_jobs_of_other_names_and_other_keys_stay_apart(hands: Hands) -> None:
    await hands.enqueue(Play(text="k"), Count(upto=1), key="k")
    await hands.enqueue(Play(text="l"), key="l")
    await hands.work()
    assert sorted(await hands.applied()) == ["1", "k", "l"]


async def test_a_row_is_not_sent_while_a_sent_row_of_its_id_exists(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(text="second"), key="k")
    assert await hands.relay.drain() == 0
    assert [row.sent_epoch is None for row in await hands.rows()] == [False, True]


async def test_a_change_made_while_the_first_runs_is_not_missed(hands: Hands, stage: Stage) -> None:
    await hands.enqueue(Play(text="first", does="wait"), key="k")
    await hands.relay.drain()
    [claim] = await hands.take()
    running = asyncio.create_task(hands.finish(claim))
    await stage.begun.wait()
    await hands.enqueue(Play(text="second"), key="k")
    assert await hands.work() == []
    stage.go_on.set()
    await running
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    assert await hands.applied() == ["first", "second"]


async def test_at_most_one_row_waits_behind_the_one_that_runs(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    for number in range(20):
        await hands.enqueue(Play(text=str(number)), key="k", delay=timedelta(seconds=-number))
    [earliest] = await hands.sql("select min(due_at) from worker.outbox where sent_epoch is null")
    await hands.relay.drain()
    [_, waiting] = await hands.rows()
    assert waiting.due_at == earliest[0]
    await hands.work()
    assert await hands.applied() == ["first", "19"]


async def test_a_row_in_the_millisecond_of_its_id_s_last_run_is_given_the_next(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.work()
    await hands.enqueue(Play(text="second"), key="k")
    [run] = await hands.runs()
    for late_ms in (run.enqueued_ms, run.enqueued_ms - 60_000):
        await hands.sql("update worker.outbox set enqueued_ms = :ms", ms=late_ms)
        await hands.relay.drain()
        [row] = await hands.rows()
        assert row.enqueued_ms == run.enqueued_ms + 1
        await hands.sql("update worker.outbox set sent_epoch = null")
        await hands.redis.delete(f"arq:job:{ID}", "arq:queue")
    await hands.work()
    assert await hands.applied() == ["first", "second"]
    assert [run.enqueued_ms for run in await hands.runs()] == [run.enqueued_ms, run.enqueued_ms + 1]


async def test_the_next_millisecond_is_committed_before_the_push_and_stands_in_the_message(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.work()
    [run] = await hands.runs()
    await hands.enqueue(Play(text="second"), key="k")
    await hands.sql("update worker.outbox set enqueued_ms = :ms", ms=run.enqueued_ms)
    await hands.redis.set("arq:queue", "not a queue, so that the push can't be done")
    await hands.relay.drain()
    [row] = await hands.rows()
    assert (row.enqueued_ms, row.sent_epoch) == (run.enqueued_ms + 1, None)
    await hands.redis.delete("arq:queue")
    await hands.relay.drain()
    message = decode(await hands.redis.get(f"arq:job:{ID}") or b"")
    assert isinstance(message, Message)
    assert message.enqueued_ms == run.enqueued_ms + 1


async def test_a_row_enqueued_by_a_clock_far_ahead_keeps_its_time_and_the_next_follows_it(hands: Hands) -> None:
    await hands.enqueue(Play(text="ahead"), key="k")
    ahead = 4_000_000_000_000
    await hands.sql("update worker.outbox set enqueued_ms = :ms", ms=ahead)
    await hands.work()
    await hands.enqueue(Play(text="next"), key="k")
    await hands.work()
    assert [run.enqueued_ms for run in await hands.runs()] == [ahead, ahead + 1]


async def test_the_end_of_a_run_leaves_a_younger_unsent_row_of_the_same_millisecond(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(text="second"), key="k")
    await _same_millisecond(hands)
    [claim] = await hands.take()
    await hands.finish(claim)
    [row] = await hands.rows()
    assert row.sent_epoch is None
    await hands.work()
    assert await hands.applied() == ["first", "second"]


async def test_a_late_delivery_of_the_first_is_a_duplicate_and_leaves_the_second_s_row(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    [claim] = await hands.take()
    assert isinstance(await hands.carry_out(claim), Completed)
    await hands.enqueue(Play(text="second"), key="k")
    await _same_millisecond(hands)
    assert isinstance(await hands.carry_out(claim), Duplicate)
    assert len(await hands.rows()) == 1
    assert isinstance(await hands.finish(claim), Duplicate)
    await hands.work()
    assert await hands.applied() == ["first", "second"]


async def test_a_job_that_ends_before_its_relay_s_turn_does_takes_its_row(hands: Hands) -> None:
    """The mark must be seen by then: an unsent row isn't the run's own, and would run again."""
    epoch = await current_epoch(hands.engine, hands.redis)
    await hands.enqueue(Play(text="once"), key="k")
    pusher = Pusher(hands.engine, hands.redis)
    push = Stopped(pusher, after=True)
    turn = asyncio.create_task(pusher.send_coalescing(epoch.number, []))
    await push.reached.wait()
    [claim] = await hands.take()
    await hands.finish(claim)
    assert await hands.rows() == []
    push.go_on.set()
    assert (await turn).sent == 1
    assert await hands.work() == []
    assert await hands.applied() == ["once"]


async def test_the_second_waits_until_the_first_s_message_has_left_redis(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    [claim] = await hands.take()
    await hands.carry_out(claim)
    await hands.enqueue(Play(text="second"), key="k")
    assert await hands.relay.drain() == 0
    [row] = await hands.rows()
    assert row.sent_epoch is None
    await hands.finish(claim)
    assert await hands.relay.drain() == 1


async def test_coalescing_rows_are_sent_only_when_they_are_due(hands: Hands) -> None:
    await hands.enqueue(Play(text="later"), key="k", delay=AN_HOUR)
    assert await hands.relay.drain() == 0
    await hands.enqueue(Play(text="now"), key="k")
    assert await hands.relay.drain() == 1
    await hands.work()
    assert await hands.applied() == ["now"]


async def test_a_delayed_row_is_brought_forward_by_one_that_is_due_sooner(hands: Hands) -> None:
    await hands.enqueue(Play(text="due, but older"), key="k")
    await hands.enqueue(Play(text="newest, but later"), key="k", delay=AN_HOUR)
    await hands.work()
    assert await hands.applied() == ["newest, but later"]


async def test_what_waits_is_sent_after_a_retry_and_a_snooze_with_no_case_of_its_own(hands: Hands) -> None:
    for does in ("fail once", "snooze once"):
        await hands.enqueue(Play(text=does, does=does), key="k")
        await hands.relay.drain()
        [claim] = await hands.take()
        await hands.enqueue(Play(text=f"after {does}"), key="k")
        assert isinstance(await hands.finish(claim), Retrying | Snoozed)
        assert [type(outcome) for outcome in await hands.work()] == [Completed, Completed]
    assert await hands.applied() == ["fail once", "after fail once", "snooze once", "after snooze once"]


async def test_a_snooze_of_no_time_lets_others_have_their_turn(hands: Hands) -> None:
    looks, other = await hands.enqueue(Play(text="looks", does="snooze once"), Play(text="other"))
    await hands.relay.drain()
    await hands.redis.zadd("arq:queue", {looks: 1, other: 2})
    for _ in range(2):
        [claim] = await hands.take()
        await hands.finish(claim)
    assert await hands.applied() == ["other"]
    await hands.work()


async def test_what_waits_is_sent_when_the_first_is_dead_or_cancelled(hands: Hands) -> None:
    for does in ("fail", "cancel"):
        await hands.enqueue(Play(does=does), key="k")
        await hands.relay.drain()
        await hands.enqueue(Play(text=f"after {does}"), key="k")
        await hands.work()
    assert await hands.applied() == ["after fail", "after cancel"]


async def test_what_waits_is_sent_when_the_last_chunk_of_a_chunked_job_has_committed(hands: Hands) -> None:
    await hands.enqueue(Count(upto=2), key="k")
    await hands.relay.drain()
    await hands.enqueue(Count(upto=3), key="k")
    await hands.work()
    assert await hands.applied() == ["1", "2", "1", "2", "3"]


async def test_two_relays_at_once_send_a_key_once(engine: AsyncEngine, broker: ArqRedis, stage: Stage) -> None:
    relays = [Hands(engine, broker, stage) for _ in range(3)]
    for _ in range(5):
        await relays[0].enqueue(*(Play(text=str(number)) for number in range(3)), key="k")
        sent = await asyncio.gather(*(hands.relay.drain() for hands in relays))
        assert sum(sent) == 1
        await relays[0].work()
    assert await relays[0].applied() == ["2"] * 5


async def test_replays_of_two_dead_runs_of_one_key_run_one_after_the_other(hands: Hands) -> None:
    """Two plain rows of one id: were both marked at once, the index of sent rows would refuse the whole batch."""
    for _ in range(2):
        await hands.enqueue(Play(text="again", does="fail"), key="k")
        await hands.work()
    await hands.sql("update worker.run set status = 'waiting', finished_at = null, attempt = 0, message = null")
    for run in await hands.runs():
        payload = Play(text="again", does="fail once").to_payload()
        await hands.sql(
            "insert into worker.outbox (id, enqueued_ms, name, queue, message)"
            " values (:id, :ms, :name, :queue, :message)",
            id=run.id,
            ms=run.enqueued_ms,
            name=run.name,
            queue=run.queue,
            message=encode(Message(run.name, payload, run.enqueued_ms, from_outbox=True)),
        )
    await hands.enqueue(Play(text="other"))
    assert await hands.relay.drain() == 2
    await hands.work()
    assert sorted(await hands.applied()) == ["again", "again", "other"]


async def test_a_row_in_the_millisecond_of_a_replayed_run_is_a_job_of_its_own(hands: Hands) -> None:
    await hands.enqueue(Play(text="replayed", does="fail"), key="k")
    assert isinstance((await hands.work())[-1], Dead)
    [run] = await hands.runs()
    await replay(hands.engine, ID)
    await hands.enqueue(Play(text="new"), key="k")
    # As if the new one's relay came first: the replayed row isn't sent yet.
    await hands.sql("update worker.outbox set enqueued_ms = :ms where coalesces", ms=run.enqueued_ms)
    await hands.sql("update worker.outbox set queue = 'elsewhere' where not coalesces")
    await hands.relay._pusher.send_coalescing(1, [])
    await hands.work()
    assert await hands.applied() == ["new"]
    assert [run.status for run in await hands.runs()] == ["waiting", "completed"]
    await hands.work("elsewhere")
    assert [run.status for run in await hands.runs()] == ["dead", "completed"]


async def test_a_transaction_that_was_open_while_its_key_ran_still_begins_a_run(hands: Hands) -> None:
    """Its row is older than those that were sent, and is committed last."""
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue(session, Play(text="slow to commit"), key="k")
        await session.flush()
        await hands.enqueue(Play(text="quick"), key="k")
        await hands.work()
    await hands.work()
    assert await hands.applied() == ["quick", "slow to commit"]


async def test_a_blocked_row_costs_the_relay_nothing_but_the_look(hands: Hands) -> None:
    """Rows that wait for another's end aren't written to at every look."""
    await hands.enqueue(Play(), Play(), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(), key="k")
    before = await hands.rows("xmin")
    await hands.relay.drain()
    assert await hands.rows("xmin") == before


async def test_each_of_thousands_of_rows_of_a_key_looks_for_one_other_and_not_for_all(hands: Hands) -> None:
    await hands.enqueue(Play(), key="k")
    await hands.relay.drain()
    waiting = """insert into worker.outbox (id, enqueued_ms, name, queue, message, coalesces)
        select :id, 2000000000000 + n, 'test.play', 'arq:queue', 'x', true from generate_series(1, 4000) as n"""
    await hands.sql(waiting, id=ID)
    with noted(hands.engine) as sent:
        assert (await Pusher(hands.engine, hands.redis).send_coalescing(1, [])).found == 1
    await hands.sql("delete from worker.outbox where sent_epoch is null")
    await hands.sql(waiting, id=ID)
    assert await blocks_read(hands.engine, *sent) < 50 * 4_000
    await hands.redis.flushdb()


async def test_a_handler_that_enqueues_its_own_key_runs_again(hands: Hands) -> None:
    await hands.enqueue(Play(text="first", does="enqueue"), key="k")
    assert [type(outcome) for outcome in await hands.work()] == [Completed, Completed]
    assert await hands.applied() == ["first", "enqueued by a handler"]


async def test_no_run_of_a_key_begins_while_another_runs(hands: Hands) -> None:
    """Not even where Redis lost everything in between: the row that waits stays unsent until the first is final."""
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(text="second"), key="k")
    await hands.redis.flushall()
    await hands.relay.drain()
    [claim] = await hands.take(want=10)
    message = decode(claim.message or b"")
    assert isinstance(message, Message)
    assert Play.from_payload(message.payload).text == "first"
    await hands.finish(claim)
    async with hands.engine.connect() as connection:
        sent = await connection.execute(text("select count(*) from worker.outbox where sent_epoch is not null"))
        assert sent.scalar_one() == 0
    await hands.work()
    assert await hands.applied() == ["first", "second"]


async def test_an_abort_of_an_earlier_job_of_a_key_ends_no_later_one(hands: Hands) -> None:
    """Whoever asks for the abort of a job that has just ended leaves a word in Redis under its id."""
    await hands.enqueue(Play(text="first"), key="k")
    await hands.work()
    await hands.redis.zadd("arq:abort", {ID: (await hands.runs())[0].enqueued_ms})
    await hands.enqueue(Play(text="second"), key="k")
    await hands.relay.drain()
    [claim] = await hands.take()
    assert not claim.aborted
    assert await hands.redis.exists("arq:abort") == 0
    await hands.finish(claim)


async def test_an_abort_of_a_job_that_is_still_to_be_sent_is_kept(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.redis.zadd("arq:abort", {ID: (await hands.rows())[0].enqueued_ms})
    await hands.relay.drain()
    [claim] = await hands.take()
    assert claim.aborted
    await hands.finish(claim)


async def test_of_two_of_a_key_in_one_millisecond_that_keep_no_run_none_is_lost(hands: Hands) -> None:
    """The first has ended in PostgreSQL, and its worker was killed before Redis was told."""
    await hands.enqueue(Loose(fails=False), key="k")
    await hands.relay.drain()
    [claim] = await hands.take()
    await hands.enqueue(Loose(fails=True), key="k")
    await hands.sql(
        "update worker.outbox set enqueued_ms = (select min(enqueued_ms) from worker.outbox) where sent_epoch is null"
    )
    await hands.carry_out(claim)
    await hands.redis.delete(f"arq:in-progress:{coalescing_id('test.loose', 'k')}")
    await hands.redis.zadd("arq:queue", {coalescing_id("test.loose", "k"): 1})
    for _ in range(2):  # the first once more, and then the second
        await hands.work()
    assert [run.status for run in await hands.runs()] == ["dead"]
    assert await hands.rows() == []
