"""What enqueue promises: once its transaction commits, a job is applied exactly once; and what is outside of it."""

import asyncio
from datetime import timedelta

from tests.outbox.hands import AN_HOUR, Count, Hands, Loose, Play
from tests.support.waiting import wait_until
from worker.dev import EmbeddedPostgres
from worker.outcome import Completed, Duplicate, Released
from worker.queue import Queue
from worker.wire import Message, decode


async def test_a_worker_that_stops_before_its_commit_leaves_nothing_and_the_job_runs_again(hands: Hands) -> None:
    await hands.enqueue(Play(text="once", does="wait"))
    await hands.relay.drain()
    [claim] = await hands.take()
    stopping = asyncio.create_task(hands.finish(claim))
    await hands.stage.begun.wait()
    stopping.cancel()
    assert isinstance(await stopping, Released)
    assert await hands.applied() == []
    hands.stage.go_on.set()
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    assert await hands.applied() == ["once"]


async def test_a_worker_that_dies_between_commit_and_acknowledgement_leaves_a_duplicate(hands: Hands) -> None:
    [job_id] = await hands.enqueue(Play(text="once"))
    await hands.relay.drain()
    [claim] = await hands.take()
    await hands.carry_out(claim)
    await hands.redis.delete(f"arq:in-progress:{job_id}")
    await hands.redis.zadd("arq:queue", {job_id: 1})
    assert await hands.work() == [Duplicate({"text": "once"})]
    assert await hands.applied() == ["once"]


async def test_a_crashed_postgresql_loses_nothing_that_was_committed(hands: Hands, postgres: EmbeddedPostgres) -> None:
    """It crashes while jobs wait in the outbox and in Redis, back off, run, and are in between chunks."""
    await hands.enqueue(Count(upto=3), Play(text="in Redis"))
    await hands.enqueue(Play(text="its key"), key="k")
    await hands.enqueue(Play(text="backs off", does="snooze once"), job_id="j")
    await hands.relay.drain()
    [first] = await hands.take()
    counting = asyncio.create_task(hands.finish(first))

    async def a_chunk_has_committed() -> bool:
        return bool(await hands.applied())

    await wait_until(a_chunk_has_committed)
    await hands.enqueue(Play(text="in the outbox"))
    await asyncio.to_thread(postgres.crash)
    await asyncio.gather(counting, return_exceptions=True)
    await asyncio.to_thread(postgres.start)
    await hands.engine.dispose()
    await hands.redis.zadd("arq:queue", {first.job_id: 1})
    await hands.redis.delete(f"arq:in-progress:{first.job_id}")
    await hands.work()
    assert sorted(await hands.applied()) == ["1", "2", "3", "backs off", "in Redis", "in the outbox", "its key"]
    assert await hands.rows() == []


async def test_extra_payload_keys_are_ignored_so_that_producers_may_be_deployed_first(hands: Hands) -> None:
    await hands.sql("""select worker.enqueue('test.play', '{"text": "a", "added_later": {"x": 1}}')""")
    await hands.work()
    assert await hands.applied() == ["a"]


async def test_without_tracing_a_message_carries_no_headers(hands: Hands) -> None:
    await hands.enqueue(Play())
    [row] = await hands.rows()
    message = decode(row.message)
    assert isinstance(message, Message)
    assert message.headers == {}
    assert b"_headers" not in row.message


async def test_every_key_in_redis_is_arq_s_or_begins_with_ratchet(hands: Hands) -> None:
    await hands.enqueue(Play(), Count(upto=2), Loose(), Play(does="snooze"), Play(does="fail once"))
    await hands.enqueue(Play(), delay=AN_HOUR)
    await Queue(hands.redis).enqueue(Play(does="snooze"))
    await hands.work()
    await hands.take()
    keys = {key.decode() for key in await hands.redis.keys()}
    known = ("arq:queue", "arq:job:", "arq:result:", "arq:in-progress:", "arq:retry:", "ratchet:")
    assert [key for key in keys if not key.startswith(known)] == []


async def test_a_direct_job_that_redis_loses_before_its_first_attempt_ended_is_lost(hands: Hands) -> None:
    """A limit, named in the docs."""
    await Queue(hands.redis).enqueue(Play(text="lost"))
    await hands.redis.flushall()
    assert await hands.work() == []
    assert await hands.runs() == []


async def test_a_direct_job_whose_run_was_pruned_runs_again_if_an_old_snapshot_brings_it_back(hands: Hands) -> None:
    """A limit, named in the docs. A job from the outbox is a duplicate then."""
    direct = await Queue(hands.redis).enqueue(Play(text="direct"))
    [boxed] = await hands.enqueue(Play(text="outbox"))
    await hands.relay.drain()
    snapshot = {job_id: await hands.redis.get(f"arq:job:{job_id}") or b"" for job_id in (direct, boxed) if job_id}
    await hands.work()
    await hands.sql("delete from worker.run")
    for job_id, message in snapshot.items():
        await hands.redis.set(f"arq:job:{job_id}", message)
        await hands.redis.zadd("arq:queue", {job_id: 1})
    await hands.work()
    assert sorted(await hands.applied()) == ["direct", "direct", "outbox"]


async def test_a_job_without_a_key_or_an_id_of_its_own_is_a_job_each_time(hands: Hands) -> None:
    await hands.enqueue(Play(text="a"), Play(text="a"))
    await hands.enqueue(Play(text="a"), delay=-timedelta(seconds=1))
    await hands.work()
    assert await hands.applied() == ["a", "a", "a"]
