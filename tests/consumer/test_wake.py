"""What our client, the relay or a worker adds to an idle queue wakes the workers; a busy queue costs no publishing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.conftest import Effects, Logged, Work
from tests.consumer.jobs import PING, Ping
from tests.consumer.redis_proxy import RedisProxy
from tests.support.waiting import wait_until
from worker import consumer, runtime
from worker.broker import connect_broker
from worker.claims import Claims
from worker.endings import Finish, PutBack
from worker.heartbeat import live_workers
from worker.outbox import enqueue
from worker.queue import Queue
from worker.wake import CHANNEL, IDLE_KEY, listen_for_wakes

QUEUE = "arq:queue"
SOON = timedelta(milliseconds=30)


class Heard:
    """What was said on the channel."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def since(self, redis: Redis) -> list[bytes]:
        """The queues that were named since the last call; a word of our own says that there is no more."""
        await redis.publish(CHANNEL, "the end")
        named: list[bytes] = []
        while True:
            async with asyncio.timeout(5):
                told = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
            if told and told["data"] == b"the end":
                return named
            named += [told["data"]] if told else []


@pytest.fixture
async def heard(redis: Redis) -> AsyncIterator[Heard]:
    pubsub: Any = redis.pubsub()
    await pubsub.subscribe(CHANNEL)
    yield Heard(pubsub)
    await pubsub.aclose()


@pytest.fixture
def claims(redis: Redis) -> Claims:
    return Claims(redis, timedelta(seconds=15))


async def test_the_first_job_after_a_claim_that_left_slots_free_wakes_and_no_other(
    redis: Redis, claims: Claims, heard: Heard
) -> None:
    queue = Queue(redis)
    await queue.enqueue(Ping())
    assert await heard.since(redis) == []
    assert len(await claims.take([QUEUE, "other"], 2, "me")) == 1
    await queue.enqueue(Ping())
    await queue.enqueue_many([Ping(), Ping()])
    assert await heard.since(redis) == [QUEUE.encode()]
    assert len(await claims.take([QUEUE, "other"], 3, "me")) == 3
    await queue.enqueue(Ping())
    assert await heard.since(redis) == []
    await Queue(redis, "other").enqueue(Ping())
    assert await heard.since(redis) == [b"other"]
    await redis.flushall()


async def test_a_job_for_later_wakes_nobody_and_a_look_knows_of_it(redis: Redis, claims: Claims, heard: Heard) -> None:
    assert await claims.take([QUEUE], 1, "me") == []
    await Queue(redis).enqueue(Ping(), delay=timedelta(minutes=1))
    assert await heard.since(redis) == []
    due_in = await claims.look([QUEUE])
    assert due_in is not None
    assert round(due_in / 60_000) == 1
    await redis.flushall()


async def test_what_is_put_back_at_once_wakes_and_what_waits_does_not(
    redis: Redis, claims: Claims, heard: Heard
) -> None:
    await Queue(redis).enqueue_many([Ping(), Ping(), Ping()])
    taken = await claims.take([QUEUE], 9, "me")
    await claims.settle([Finish(taken[0]), PutBack(taken[1], SOON)])
    assert await heard.since(redis) == []
    await claims.settle([PutBack(taken[2])])
    assert await heard.since(redis) == [QUEUE.encode()]
    await redis.flushall()


async def test_a_look_before_the_first_claim_asks_for_one_then_tells_when_the_next_is_due(
    redis: Redis, claims: Claims
) -> None:
    assert await claims.look([QUEUE]) == 0
    await claims.take([QUEUE, "other"], 1, "me")
    assert await claims.look([QUEUE, "other"]) is None
    await redis.zadd("other", {"late": 1e18})
    await redis.zadd(QUEUE, {"later": float("inf")})
    assert any(1e17 < (due_in or 0) < 1e18 for due_in in [await claims.look([QUEUE, "other"]) for _ in range(2)])
    await redis.zadd(QUEUE, {"now": 1})
    assert any((due_in or 0) < 0 for due_in in [await claims.look([QUEUE, "other"]) for _ in range(2)])
    await redis.delete(QUEUE, "other")


async def test_after_the_first_a_look_costs_one_command_however_many_queues_there_are(
    redis: Redis, claims: Claims
) -> None:
    queues = ["a", "b", "c", "d"]
    await claims.take(queues, 1, "me")
    await claims.look(queues)
    before = await commands(redis)
    for _ in range(8):
        assert await claims.look(queues) is None
    assert await commands(redis) - before == 8 + 1  # and the question itself
    await redis.zadd("c", {"a": 1})
    assert min([await claims.look(queues) or 0 for _ in queues]) < 0


async def test_jobs_sent_to_redis_start_at_once(arq: ArqRedis, work: Work, effects: Effects) -> None:
    """No poll is near: only the word of the client can have woken the worker."""
    async with work(PING, poll_delay=60) as worker:
        for n in range(3):
            job_id = f"job-{n}"
            await Queue(arq).enqueue(Ping(), job_id=job_id)
            await worker.outcome(job_id)
    assert await effects() == ["job-0", "job-1", "job-2"]


async def test_what_another_workers_relay_sends_starts_at_once(
    work: Work, session: AsyncSession, effects: Effects
) -> None:
    """Whichever relay sends it, either worker may be the one that takes it."""
    async with work(PING, poll_delay=60) as one, work(PING, poll_delay=60) as other:
        job_id = enqueue(session, Ping())
        await session.commit()

        async def is_done() -> bool:
            return bool(one.of(job_id) or other.of(job_id))

        await wait_until(is_done)
    assert await effects() == [job_id]


async def test_a_listener_that_lost_redis_comes_back_says_so_once_and_wakes(
    proxy: RedisProxy, logged: Logged, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.wake.LISTEN_AGAIN_S", 0.02)
    client, woken = connect_broker(proxy.url), asyncio.Event()
    listener = asyncio.create_task(listen_for_wakes(client, woken.set))
    async with asyncio.timeout(10):
        await woken.wait()
        woken.clear()
        await proxy.away()

        async def is_said() -> bool:
            return bool(logged)

        await wait_until(is_said)
        await proxy.back()
        await woken.wait()
        woken.clear()
        await redis.publish(CHANNEL, QUEUE)
        await woken.wait()
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    await client.aclose()
    assert [line["event"] for line in logged] == ["not_listening_for_wakes", "listening_for_wakes_again"]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_word_is_heard_in_either_of_rediss_protocols_and_so_is_silence(
    protocol: int, proxy: RedisProxy, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers is believed however long it has nothing to say."""
    monkeypatch.setattr("worker.wake.SILENCE_S", 0.02)
    client, woken = connect_broker(f"{proxy.url}?protocol={protocol}"), asyncio.Event()
    listener = asyncio.create_task(listen_for_wakes(client, woken.set))

    async def pinged() -> int:
        stats: dict[str, dict[str, int]] = await redis.info("commandstats")
        return stats.get("cmdstat_ping", {"calls": 0})["calls"]

    async def is_asked() -> bool:
        return await pinged() >= before + 3

    async with asyncio.timeout(10):
        await woken.wait()  # the subscription's own word
        woken.clear()
        before = await pinged()
        await wait_until(is_asked)
        assert not woken.is_set()
        await redis.publish(CHANNEL, QUEUE)
        await woken.wait()
    assert not listener.done()
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    await client.aclose()


async def test_a_listener_that_may_not_listen_says_so_once(
    redis: Redis, redis_url: str, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.wake.LISTEN_AGAIN_S", 0.02)
    await redis.acl_setuser("deaf", enabled=True, nopass=True, keys=["*"], commands=["+@all"], channels=[])
    parts = urlsplit(redis_url)
    client, woken = connect_broker(parts._replace(netloc=f"deaf:any@{parts.netloc}").geturl()), asyncio.Event()
    listener = asyncio.create_task(listen_for_wakes(client, woken.set))

    async def was_refused_again() -> bool:
        stats: dict[str, dict[str, int]] = await redis.info("commandstats")
        return stats.get("cmdstat_subscribe", {"rejected_calls": 0})["rejected_calls"] >= 3

    await redis.config_resetstat()
    await wait_until(was_refused_again)
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    await client.aclose()
    await redis.acl_deluser("deaf")
    assert [line["event"] for line in logged] == ["not_listening_for_wakes"]
    assert not woken.is_set()


async def test_a_hundred_jobs_cost_redis_at_most_three_commands_each_with_those_inside_scripts(
    redis: Redis, claims: Claims
) -> None:
    await Queue(redis).enqueue_many(Ping(n=n) for n in range(200))
    first = await claims.take([QUEUE], 100, "warm")
    await claims.settle([Finish(claim) for claim in first])
    before = await commands(redis)
    taken = await claims.take([QUEUE], 100, "me")
    assert await claims.settle([Finish(claim) for claim in taken]) == [True] * 100
    assert await commands(redis) - before <= 3 * 100


async def commands(redis: Redis) -> int:
    stats: dict[str, dict[str, int]] = await redis.info("commandstats")
    return sum(stat["calls"] for stat in stats.values())


async def test_a_worker_that_polls_seldom_is_heard_of_and_stays_awake(
    arq: ArqRedis, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rest may be a minute, a heartbeat 20 s and an idle mark 30."""
    for module in (consumer, runtime):
        monkeypatch.setattr(module, "BEAT_EVERY_S", 0.05)
    monkeypatch.setattr("worker.claims.MARK_AGAIN_S", 0.05)

    async def is_known() -> bool:
        return len(await live_workers(arq)) == 1 and bool(await arq.exists(IDLE_KEY + QUEUE))

    async with work(PING, poll_delay=60):
        await wait_until(is_known)
        await arq.flushall()
        await wait_until(is_known)
    await arq.flushall()
