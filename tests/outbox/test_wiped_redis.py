"""A wiped Redis loses no job that was enqueued in a transaction."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.outbox.hands import AN_HOUR, Count, Hands, Play, Stage
from tests.support.waiting import wait_until
from worker.availability import Availability
from worker.dev import EmbeddedValkey
from worker.endings import PutBack
from worker.epoch import current_epoch
from worker.lease import Leases
from worker.operations import replay
from worker.outbox import coalescing_id
from worker.outcome import Completed, Duplicate, Retrying, Snoozed
from worker.push import Pusher
from worker.queue import Queue
from worker.relay import Intervals, Relay
from worker.reporting.observer import Observers


def settling(hands: Hands) -> Relay:
    """A relay that gives living workers their time after a wipe."""
    intervals = Intervals(settle=timedelta(seconds=5))
    return Relay(
        hands.engine, hands.redis, Availability(hands.engine), Observers(), pushed=lambda: None, intervals=intervals
    )


async def pass_the_time(hands: Hands, seconds: float = 5) -> None:
    """As if the wipe had been noticed longer ago."""
    await hands.sql(f"update worker.relay_state set raised_at = raised_at - interval '{seconds} s'")


@pytest.fixture
def snapshots(valkey: EmbeddedValkey) -> Iterator[None]:
    """Valkey loads what SAVE has written when it starts; the next test's starts empty."""
    yield
    (Path(valkey.log_path).parent / "dump.rdb").unlink(missing_ok=True)


async def test_a_clock_that_was_set_back_after_a_wipe_holds_up_nothing(hands: Hands) -> None:
    await hands.enqueue(Play(text="a"))
    await hands.relay.drain()
    await hands.redis.flushall()
    relay = settling(hands)
    assert await relay.drain() == 0
    await pass_the_time(hands, seconds=-3600)
    assert await relay.drain() == 1
    await hands.work()
    assert await hands.applied() == ["a"]


async def test_everything_from_the_outbox_is_sent_again_and_applied_once(
    hands: Hands, stage: Stage, redis_url: str
) -> None:
    """Redis is emptied while jobs wait, run, are in between chunks, and back off."""
    await hands.enqueue(Play(text="runs", does="wait"))
    await hands.relay.drain()
    [running] = await hands.take()
    leases = Leases(redis_url, timedelta(seconds=0.9), AN_HOUR, recycle=lambda: None, fault=lambda _: None)
    leases.hold(running)
    leases.start()
    task = asyncio.create_task(hands.finish(running))
    await stage.begun.wait()
    await hands.enqueue(Count(upto=3))
    await hands.enqueue(Play(text="waits"))
    await hands.enqueue(Play(text="its key waits"), key="k")
    [snoozing] = await hands.enqueue(Play(text="never", does="snooze"))
    [later] = await hands.enqueue(Play(text="never"), delay=AN_HOUR)
    await hands.relay.drain()
    while snoozing not in [run.id for run in await hands.runs() if run.status == "snoozed"]:
        [claim] = await hands.take()
        if claim.job_id == snoozing:
            await hands.finish(claim)
        else:
            await hands.claims.settle([PutBack(claim)])
            await hands.redis.zincrby("arq:queue", 10, claim.job_id)
    before = await hands.redis.zscore("arq:queue", snoozing)

    await hands.redis.flushall()

    async def its_in_progress_key_is_restored() -> bool:
        return bool(await hands.redis.exists(f"arq:in-progress:{running.job_id}"))

    await wait_until(its_in_progress_key_is_restored)
    outcomes = await hands.work()
    assert [type(outcome) for outcome in outcomes].count(Completed) == 3
    assert abs(await hands.redis.zscore("arq:queue", snoozing) - before) < 60_000
    assert await hands.redis.zscore("arq:queue", later) > before - 60_000
    assert await hands.redis.zscore("arq:queue", running.job_id) is not None
    stage.go_on.set()
    leases.drop(running)
    assert isinstance(await task, Completed)
    leases.stop()
    assert await hands.work() == []
    assert sorted(await hands.applied()) == ["1", "2", "3", "its key waits", "runs", "waits"]
    assert {row.id for row in await hands.rows("id")} == {snoozing, later}


async def test_the_relay_waits_one_renewal_after_a_wipe(hands: Hands) -> None:
    relay = settling(hands)
    await hands.enqueue(Play(text="old"))
    assert await relay.drain() == 1
    await hands.redis.flushall()
    assert await relay.drain() == 0
    await pass_the_time(hands, 4)
    assert await relay.drain() == 0
    await pass_the_time(hands, 1)
    assert await relay.drain() == 1


async def test_what_is_new_is_sent_at_once_after_a_wipe(hands: Hands) -> None:
    relay = settling(hands)
    await hands.enqueue(Play(text="old"))
    await relay.drain()
    await hands.redis.flushall()
    await relay.drain()
    await hands.enqueue(Play(text="new"))
    await hands.enqueue(Play(text="new key"), key="k")
    assert await relay.drain() == 2


async def test_no_sweep_begins_in_the_time_after_a_wipe(hands: Hands) -> None:
    """Not even one that trouble asks for: it would send what living workers run before they restore their keys."""
    relay = settling(hands)
    await hands.enqueue(Play())
    await relay.drain()
    await hands.redis.flushall()
    await relay.drain()
    relay._sweep.want()
    assert await relay._sweep.step() is None
    await pass_the_time(hands)
    assert await relay._sweep.step() == 1


async def test_the_first_redis_of_a_database_needs_no_wait(hands: Hands) -> None:
    await hands.enqueue(Play())
    assert await settling(hands).drain() == 1
    assert (await current_epoch(hands.engine, hands.redis)).age is None


async def test_the_time_since_a_wipe_is_told_by_postgresql_s_clock(hands: Hands) -> None:
    await current_epoch(hands.engine, hands.redis)
    await hands.redis.flushall()
    epoch = await current_epoch(hands.engine, hands.redis)
    assert epoch.age is not None
    assert not epoch.has_settled(timedelta(seconds=5))
    # A worker whose own clock is an hour behind, or ahead, would come to another answer from the time alone.
    await pass_the_time(hands, 5)
    assert (await current_epoch(hands.engine, hands.redis)).has_settled(timedelta(seconds=5))


async def test_a_wipe_is_told_by_the_marker_and_raises_the_epoch_once_over_all_relays(hands: Hands) -> None:
    before = await current_epoch(hands.engine, hands.redis)
    await hands.redis.flushall()
    after = await asyncio.gather(*(current_epoch(hands.engine, hands.redis) for _ in range(8)))
    assert {epoch.number for epoch in after} == {before.number + 1}
    assert (await current_epoch(hands.engine, hands.redis)).number == before.number + 1


async def test_a_restart_is_told_by_redis_s_run_id_though_the_marker_is_there(
    hands: Hands, valkey: EmbeddedValkey, snapshots: None
) -> None:
    before = await current_epoch(hands.engine, hands.redis)
    await hands.redis.save()
    await asyncio.to_thread(valkey.kill)
    await asyncio.to_thread(valkey.start)
    assert await hands.redis.keys("ratchet:relay:*")
    assert (await current_epoch(hands.engine, hands.redis)).number == before.number + 1


async def test_another_redis_is_told_from_the_first(hands: Hands) -> None:
    before = await current_epoch(hands.engine, hands.redis)
    [key] = await hands.redis.keys("ratchet:relay:*")
    await hands.redis.set(key, "another database's relay wrote this")
    assert (await current_epoch(hands.engine, hands.redis)).number == before.number + 1


async def test_workers_whose_redis_differ_are_told_so_and_one_that_was_wiped_isnt(hands: Hands, redis_url: str) -> None:
    """What one Redis was sent is never sent to the other, since each look of the other's workers begins a new wait."""

    async def told(redis: Redis) -> str:
        with structlog.testing.capture_logs() as logs:
            await current_epoch(hands.engine, redis)
        [log] = logs
        hint: str = log["hint"]
        return hint.rpartition("; ")[2]

    await current_epoch(hands.engine, hands.redis)
    other = Redis.from_url(redis_url, db=1)
    try:
        assert await told(other) == "what isn't in it is sent again"
        for redis in (hands.redis, other, hands.redis):
            assert (await told(redis)).endswith("workers of this database differ in REDIS_URL: give all the same")
    finally:
        await other.flushdb()
        await other.aclose()


async def test_a_crash_between_marking_redis_and_postgresql_is_mended_by_the_next_look(hands: Hands) -> None:
    before = await current_epoch(hands.engine, hands.redis)
    await hands.sql("update worker.relay_state set marker = 'what stood there before'")
    after = await current_epoch(hands.engine, hands.redis)
    assert (after.number, await current_epoch(hands.engine, hands.redis)) > (before.number, after)


async def test_the_epoch_is_read_before_the_push_so_what_a_wipe_overtakes_is_sent_again(hands: Hands) -> None:
    epoch = await current_epoch(hands.engine, hands.redis)
    await hands.enqueue(Play(text="a"))
    await hands.enqueue(Play(text="b"), key="k")
    await hands.redis.flushall()
    await current_epoch(hands.engine, hands.redis)
    pusher = Pusher(hands.engine, hands.redis)
    await pusher.send_plain(epoch.number, [])
    await pusher.send_coalescing(epoch.number, [])
    await hands.redis.delete("arq:queue")
    await hands.work()
    assert sorted(await hands.applied()) == ["a", "b"]


async def test_an_old_snapshot_s_messages_are_duplicates_and_what_it_lacks_is_sent_again(
    hands: Hands, valkey: EmbeddedValkey, snapshots: None
) -> None:
    await hands.enqueue(Play(text="done since"), Play(text="done and pruned since"))
    await hands.enqueue(Play(text="its key is done since"), key="k")
    await hands.relay.drain()
    await hands.redis.save()
    await hands.work()
    await hands.sql("delete from worker.run where result ->> 'text' = 'done and pruned since'")
    await hands.enqueue(Play(text="new since"))
    await hands.enqueue(Play(text="its key is new since"), key="k")
    await hands.relay.drain()
    await asyncio.to_thread(valkey.kill)
    await asyncio.to_thread(valkey.start)
    outcomes = await hands.work()
    assert [type(outcome) for outcome in outcomes].count(Duplicate) == 3
    assert sorted(await hands.applied())[3:] == ["its key is new since", "new since"]
    assert await hands.rows() == []


async def test_a_backoff_keeps_its_time_and_its_count(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(text="a", does="fail once"))
    await hands.relay.drain()
    [claim] = await hands.take()
    assert isinstance(await hands.finish(claim), Retrying)
    await hands.sql("update worker.run set next_at = now() + interval '30 min'")
    await hands.redis.flushall()
    seconds, _ = await hands.redis.time()
    await hands.relay.drain()
    due_s = await hands.redis.zscore("arq:queue", job_id) / 1000
    assert seconds + 29 * 60 < due_s < seconds + 31 * 60
    await hands.sql("update worker.run set next_at = now()")
    await hands.redis.zadd("arq:queue", {job_id: 1})
    await hands.work()
    [run] = await hands.runs()
    assert (run.status, run.attempt) == ("completed", 1)


async def test_a_chunked_job_goes_on_from_its_cursor(hands: Hands) -> None:
    await hands.enqueue(Count(upto=3))
    await hands.relay.drain()
    [claim] = await hands.take()
    task = asyncio.create_task(hands.finish(claim))
    await wait_until(lambda: _counted(hands))
    await hands.redis.flushall()
    await task
    await hands.work()
    assert await hands.applied() == ["1", "2", "3"]


async def _counted(hands: Hands) -> bool:
    return bool(await hands.applied())


async def test_a_message_wiped_while_its_worker_runs_it_is_not_run_again(hands: Hands, stage: Stage) -> None:
    [job_id] = await hands.enqueue(Play(text="once", does="wait"))
    await hands.relay.drain()
    [claim] = await hands.take()
    task = asyncio.create_task(hands.finish(claim))
    await stage.begun.wait()
    await hands.redis.delete(f"arq:job:{job_id}")
    await hands.redis.zrem("arq:queue", job_id)
    hands.relay._sweep.want()
    assert await hands.relay._sweep.step() == 1
    assert await hands.take() == []
    stage.go_on.set()
    assert isinstance(await task, Completed)
    assert await hands.redis.exists(f"arq:job:{job_id}", "arq:queue") == 0
    assert await hands.applied() == ["once"]


async def test_an_adopted_job_is_sent_again_too(hands: Hands) -> None:
    await Queue(hands.redis).enqueue(Play(text="direct", does="snooze once"))
    [claim] = await hands.take()
    assert isinstance(await hands.finish(claim), Snoozed)
    await hands.redis.flushall()
    await hands.work()
    assert await hands.applied() == ["direct"]


async def test_a_job_adopted_after_the_wipe_is_found_by_the_sweep(hands: Hands) -> None:
    """It counts as sent to the Redis that there is now, which has never had it."""
    await current_epoch(hands.engine, hands.redis)
    await Queue(hands.redis).enqueue(Play(text="direct", does="snooze once"))
    [claim] = await hands.take()
    await hands.redis.flushall()
    await hands.relay.drain()
    assert isinstance(await hands.finish(claim), Snoozed)
    assert await hands.work() == []
    hands.relay._sweep.want()
    assert await hands.relay._sweep.step() == 1
    await hands.work()
    assert await hands.applied() == ["direct"]


async def test_a_replayed_job_is_sent_again_too(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(text="a", does="fail"))
    await hands.work()
    await replay(hands.engine, job_id)
    await hands.relay.drain()
    await hands.redis.flushall()
    assert await hands.relay.drain() == 1


async def test_a_key_s_row_that_is_sent_again_keeps_its_identity(hands: Hands) -> None:
    await hands.enqueue(Play(text="old"), key="k")
    await hands.work()
    await hands.enqueue(Play(text="a"), key="k")
    await hands.relay.drain()
    [before] = await hands.rows("enqueued_ms")
    await hands.enqueue(Play(text="b"), key="k")
    for _ in range(3):
        await hands.redis.flushall()
        assert await hands.relay.drain() == 1
        [sent, waiting] = await hands.rows()
        assert (sent.enqueued_ms, waiting.sent_epoch) == (before.enqueued_ms, None)
    await hands.work()
    assert await hands.applied() == ["old", "a", "b"]


async def test_two_jobs_of_one_id_are_sent_again_one_after_the_other(hands: Hands) -> None:
    """The one that Redis has is waited for, and the other isn't forgotten meanwhile."""
    await hands.enqueue(Play(text="outbox"), job_id="j")
    await hands.relay.drain()
    await hands.redis.flushall()
    await Queue(hands.redis).enqueue(Play(text="direct"), job_id="j")
    assert await hands.relay.drain() == 0
    assert "j" in hands.relay._waiting
    await hands.work()
    assert await hands.applied() == ["direct", "outbox"]


async def test_losing_redis_again_and_again_loses_nothing(hands: Hands, engine: AsyncEngine) -> None:
    jobs = [Count(upto=2), Play(text="a"), Play(text="b", does="fail once"), Play(text="c", does="snooze once")]
    await hands.enqueue(*jobs)
    await hands.enqueue(Play(text="d"), key=coalescing_id("x", "y"))
    await hands.enqueue(Play(text="e"), job_id="j")
    for turn in range(40):
        await hands.relay.drain()
        if turn % 2:
            await hands.redis.flushall()
            continue
        for claim in await hands.take():
            await (hands.carry_out if turn % 3 else hands.finish)(claim)
    await hands.work()
    assert sorted(await hands.applied()) == ["1", "2", "a", "b", "c", "d", "e"]
    assert await hands.rows() == []
    assert {run.status for run in await hands.runs()} == {"completed"}
