"""A relay that is stopped where it stands holds up nobody, and takes nothing back."""

import asyncio

import pytest
from sqlalchemy.exc import DBAPIError

from tests.outbox.hands import Hands, Play, Stopped
from tests.support.waiting import wait_until
from worker import brief, database
from worker.availability import Availability
from worker.broker import connect_broker
from worker.driver import SERVER_SETTINGS
from worker.epoch import current_epoch
from worker.outcome import Duplicate
from worker.push import Pusher
from worker.queue import Queue
from worker.relay import Relay
from worker.reporting.observer import Observers


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
