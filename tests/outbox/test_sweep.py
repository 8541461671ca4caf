"""The slow sweep resends, by key order, what was sent long ago and isn't whole in Redis."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from tests.outbox.hands import AN_HOUR, Hands, Loose, Play
from tests.support.types_asked import types_asked
from tests.support.waiting import wait_until
from worker.availability import Availability
from worker.dev import EmbeddedValkey
from worker.epoch import current_epoch
from worker.outbox import enqueue_many
from worker.outcome import Completed
from worker.push import Pusher
from worker.relay import Intervals, Relay
from worker.reporting.observer import Observers
from worker.shield import cancel_all
from worker.sweep import Sweep

HALF_A_MINUTE = timedelta(seconds=30)


def sweep_of(hands: Hands, *, is_wanted: bool = True) -> Sweep:
    sweep = Sweep(hands.engine, hands.redis, every=HALF_A_MINUTE, older=HALF_A_MINUTE, settle=timedelta(0))
    sweep._is_wanted = is_wanted
    return sweep


async def sent_long_ago(hands: Hands) -> None:
    await hands.sql("update worker.outbox set sent_at = sent_at - interval '31 s' where sent_epoch is not null")


async def lose(hands: Hands, ids: Iterable[str], what: str = "message and place") -> None:
    for job_id in ids:
        if "message" in what:
            await hands.redis.delete(f"arq:job:{job_id}")
        if "place" in what:
            await hands.redis.zrem("arq:queue", job_id)


@pytest.mark.parametrize("what", ["message and place", "message", "place"])
async def test_whole_is_the_message_and_its_place_in_the_queue(hands: Hands, what: str) -> None:
    lost = await hands.enqueue(Play(text="a"), Play(text="b"))
    await hands.enqueue(Play(text="c"))
    await hands.relay.drain()
    await lose(hands, lost, what)
    await sent_long_ago(hands)
    assert await sweep_of(hands).step() == 2
    await hands.work()
    assert sorted(await hands.applied()) == ["a", "b", "c"]


async def test_no_connection_has_to_be_asked_about_types(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = types_asked(monkeypatch)
    lost = await hands.enqueue(Play())
    await hands.relay.drain()
    await lose(hands, lost)
    await sent_long_ago(hands)
    assert await sweep_of(hands).step() == 1
    assert asked == []


async def test_what_was_sent_just_now_is_left_alone(hands: Hands) -> None:
    lost = await hands.enqueue(Play())
    await hands.relay.drain()
    await lose(hands, lost)
    sweep = sweep_of(hands, is_wanted=False)
    assert await sweep.step() == 0
    await sent_long_ago(hands)
    await hands.sql("update worker.relay_state set swept_at = swept_at - interval '31 s'")
    assert await sweep_of(hands, is_wanted=False).step() == 1


async def test_a_clock_that_was_set_back_holds_up_no_sweep(hands: Hands) -> None:
    """A standby that was promoted may be behind its primary by hours, and so may a clock that was mended."""
    lost = await hands.enqueue(Play())
    await hands.relay.drain()
    await lose(hands, lost)
    await hands.sql("update worker.outbox set sent_at = now() + interval '1 hour'")
    await hands.sql("update worker.relay_state set swept_at = now() + interval '1 hour'")
    await hands.sql("update worker.relay_state set raised_at = swept_at")
    assert await sweep_of(hands, is_wanted=False).step() == 1


async def test_a_sweep_goes_page_by_page_so_that_what_is_new_never_waits_for_it(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        ids = enqueue_many(session, [Play() for _ in range(1100)])
    await hands.relay.drain()
    await lose(hands, (ids[0], ids[550], ids[1099]))
    sweep = sweep_of(hands)
    assert [await sweep.step() for _ in range(5)] == [1, 1, 1, 0, None]


async def test_a_page_has_its_limit_in_bytes_too(hands: Hands) -> None:
    await hands.sql(
        """insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, sent_at) select n::text, n,
        'x', 'arq:queue', convert_to(repeat('x', 1048576), 'UTF8'), 1, now() from generate_series(1, 10) as n"""
    )
    sweep = sweep_of(hands)
    assert [await sweep.step() for _ in range(4)] == [8, 2, 0, None]


async def test_one_worker_s_sweep_is_every_worker_s(hands: Hands) -> None:
    await hands.enqueue(Play())
    await hands.relay.drain()
    first, second = sweep_of(hands, is_wanted=False), sweep_of(hands, is_wanted=False)
    assert [await first.step() for _ in range(3)] == [0, None, None]
    assert await second.step() is None
    await hands.sql("update worker.relay_state set swept_at = swept_at - interval '31 s'")
    second._next_look = 0
    assert await second.step() == 0


async def test_a_job_that_ended_while_the_sweep_looked_is_not_sent_again(hands: Hands) -> None:
    await hands.enqueue(Play(text="once"), Loose())
    await hands.relay.drain()
    sweep = sweep_of(hands)
    look = sweep._whole

    async def look_while_they_end(**arguments: list[str]) -> list[int]:
        await hands.work()
        missing: list[int] = await look(**arguments)
        assert len(missing) == 2
        return missing

    sweep._whole = look_while_they_end
    assert await sweep.step() == 0
    assert await hands.redis.zcard("arq:queue") == 0


async def test_what_backs_off_is_whole(hands: Hands) -> None:
    await hands.enqueue(Play(does="snooze"))
    await hands.enqueue(Play(), delay=AN_HOUR)
    await hands.work()
    await sent_long_ago(hands)
    assert await sweep_of(hands).step() == 0


async def test_a_relay_killed_between_mark_and_push_is_healed_by_the_sweep(
    hands: Hands, valkey: EmbeddedValkey
) -> None:
    """Redis went away under its push, and it never looked again."""
    epoch = await current_epoch(hands.engine, hands.redis)
    await hands.enqueue(Play(text="marked"), key="k")
    [marker] = await hands.redis.keys("ratchet:relay:*")
    value = await hands.redis.get(marker)
    await asyncio.to_thread(valkey.kill)
    with pytest.raises((RedisError, OSError)):
        await Pusher(hands.engine, hands.redis).send_coalescing(epoch.number, [])
    await asyncio.to_thread(valkey.start)
    # As if Redis had been there all the time: no new epoch helps.
    await hands.redis.set(marker, value or b"")
    info = await hands.redis.info("server")
    await hands.sql("update worker.relay_state set redis_run_id = :run_id", run_id=info["run_id"])
    [row] = await hands.rows()
    assert row.sent_epoch == epoch.number
    assert await hands.work() == []
    assert await sweep_of(hands).step() == 1
    assert [type(outcome) for outcome in await hands.work()] == [Completed]


async def test_a_relay_sweeps_at_once_after_a_push_that_failed(hands: Hands, redis_url: str) -> None:
    """The reply was lost, so it can't know; what has arrived isn't sent twice."""
    await current_epoch(hands.engine, hands.redis)
    relay = Relay(
        hands.engine,
        hands.redis,
        Availability(hands.engine),
        Observers(),
        pushed=lambda: None,
        intervals=Intervals(poll=timedelta(milliseconds=20), settle=timedelta(0)),
    )
    relay._sweep._is_wanted = False
    await hands.sql("update worker.relay_state set swept_at = now()")
    push, lost = relay._pusher._push, [True]

    async def lose_the_first(**arguments: object) -> object:
        if lost:
            lost.clear()
            raise RedisError
        return await push(**arguments)

    relay._pusher._push = lose_the_first
    await hands.enqueue(Play(text="once"), key="k")
    task = asyncio.create_task(relay.run())

    async def it_is_queued() -> bool:
        return bool(await hands.redis.zcard("arq:queue"))

    await wait_until(it_is_queued)
    await cancel_all([task])
    await hands.work()
    assert await hands.applied() == ["once"]


async def test_a_push_whose_reply_was_lost_is_applied_once(
    hands: Hands, valkey: EmbeddedValkey, redis_url: str
) -> None:
    await current_epoch(hands.engine, hands.redis)
    hasty = ArqRedis.from_url(redis_url, socket_timeout=0.2, retry_on_timeout=False)
    for job, options in ((Play(text="plain"), {}), (Play(text="keyed"), {"key": "k"})):
        await hands.enqueue(job, **options)
        await hands.redis.client_pause(timeout=400, all=True)
        pusher = Pusher(hands.engine, hasty)
        with pytest.raises(RedisError):
            await (pusher.send_coalescing if options else pusher.send_plain)(2, [])
        await wait_until(lambda: _answers(hands))
        hands.relay._sweep.want()
        await hands.relay.drain()
        await hands.relay._sweep.step()
        await hands.work()
    assert await hands.applied() == ["plain", "keyed"]
    assert await hands.rows() == []
    await hasty.aclose()


async def _answers(hands: Hands) -> bool:
    return bool(await hands.redis.ping())
