"""Redis away, at start and in flight: the worker keeps trying, says so once, and goes on when it is back."""

import asyncio
import os
import signal
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Effects, Logged, Work, redis_events
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.consumer.redis_proxy import RedisProxy, sha_of
from tests.support.waiting import wait_until
from worker import broker, consumer
from worker.claim_script import CLAIM
from worker.dev import EmbeddedValkey
from worker.outbox import enqueue
from worker.outcome import Completed, Duplicate
from worker.queue import Queue
from worker.settle_script import SETTLE


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "AWAY_DELAY_S", 0.02)


async def is_said(logged: Logged, event: str) -> None:
    async def there() -> bool:
        return any(line["event"] == event for line in logged)

    await wait_until(there)


async def test_at_the_start_it_waits_and_says_so_once(
    proxy: RedisProxy, work: Work, session: AsyncSession, effects: Effects, logged: Logged
) -> None:
    await proxy.away()
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(PING, redis_url=proxy.url) as worker:
        await is_said(logged, "redis_away")
        await proxy.back()
        await worker.outcome(job_id)
    assert redis_events(logged) == ["redis_away", "redis_back"]
    assert worker.faults == []
    assert await effects() == [job_id]


async def test_in_flight_the_running_job_ends_and_is_a_duplicate_later(
    arq: ArqRedis, proxy: RedisProxy, work: Work, effects: Effects, logged: Logged
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), redis_url=proxy.url) as worker:
        await gate.reached.wait()
        await proxy.away()
        gate.opened.set()
        assert await worker.outcome("running") == Completed("opened")
        await is_said(logged, "not_acknowledged")
        await Queue(arq).enqueue(Ping(), job_id="waiting")
        await proxy.back()
        assert await worker.outcome("waiting") == Completed("opened")
        assert await worker.outcome("running", count=2) == Duplicate("opened")
    assert redis_events(logged) == ["redis_away", "redis_back"]
    assert worker.faults == []
    assert await effects() == ["running", "waiting"]


async def test_an_answer_that_is_lost_with_the_connection_is_a_duplicate_later(
    arq: ArqRedis, proxy: RedisProxy, work: Work, effects: Effects, logged: Logged
) -> None:
    await Queue(arq).enqueue(Ping(), job_id="a")
    proxy.hold_back(sha_of(SETTLE))
    async with work(PING, redis_url=proxy.url) as worker:
        await proxy.holds.wait()
        assert await arq.exists("arq:job:a") == 1
        await proxy.away()
        await proxy.back()
        assert await worker.outcome("a", count=2) == Duplicate({"n": 0})
        await worker.stop()
    assert await arq.exists("arq:job:a") == 0
    assert await effects() == ["a"]


async def test_a_claim_whose_answer_is_lost_is_taken_again_when_its_lease_has_run_out(
    arq: ArqRedis, proxy: RedisProxy, work: Work, effects: Effects
) -> None:
    """Redis has carried the claim out; the worker never heard of it."""
    await Queue(arq).enqueue(Ping(), job_id="a")
    await arq.script_load(CLAIM)  # to a server that doesn't know it the script is sent anew, whole
    proxy.lose_answer_to(sha_of(CLAIM))
    async with work(PING, redis_url=proxy.url) as worker:
        await proxy.holds.wait()
        assert await arq.exists("arq:in-progress:a") == 1
        assert await worker.outcome("a") == Completed({"n": 0})
    assert await effects() == ["a"]


async def test_a_redis_that_answers_no_more_is_given_up_and_found_again(
    arq: ArqRedis,
    valkey: EmbeddedValkey,
    work: Work,
    effects: Effects,
    logged: Logged,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker, "ANSWER_TIMEOUT_S", 0.2)
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="a")
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        os.kill(valkey.pid, signal.SIGSTOP)
        gate.opened.set()
        await is_said(logged, "not_acknowledged")
        await is_said(logged, "redis_away")
        os.kill(valkey.pid, signal.SIGCONT)
        await Queue(arq).enqueue(Ping(), job_id="b")
        assert await worker.outcome("b") == Completed("opened")

        async def is_all_settled() -> bool:
            return not await arq.zcard("arq:queue")

        await wait_until(is_all_settled)
    assert await effects() == ["a", "b"]


async def test_a_signal_ends_a_worker_while_redis_is_away_and_the_commit_it_made_stays(
    arq: ArqRedis, proxy: RedisProxy, work: Work, effects: Effects, logged: Logged
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), redis_url=proxy.url) as worker:
        await gate.reached.wait()
        await proxy.away()
        await is_said(logged, "redis_away")
        worker.signal(signal.SIGINT)
        gate.opened.set()
        async with asyncio.timeout(10):
            await worker.task
    assert await effects() == ["running"]
    async with work(PING) as another:
        assert await another.outcome("running") == Duplicate("opened")


async def test_when_it_is_back_living_workers_renew_before_anybody_claims(
    arq: ArqRedis, proxy: RedisProxy, work: Work, effects: Effects, logged: Logged
) -> None:
    """Both were cut off for longer than the lease, and one has a job that still runs."""
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), redis_url=proxy.url, lease=2, concurrency=1) as holder:
        await gate.reached.wait()
        async with work(PING, redis_url=proxy.url, lease=2) as other:
            token = await arq.get("arq:in-progress:running")
            await proxy.away()

            async def has_run_out() -> bool:
                return not await arq.exists("arq:in-progress:running")

            await wait_until(has_run_out)
            await proxy.back()
            await Queue(arq).enqueue(Ping(), job_id="next")
            assert await other.outcome("next") == Completed({"n": 0})
            assert await arq.get("arq:in-progress:running") == token
            gate.opened.set()
            assert await holder.outcome("running") == Completed("opened")
    assert await effects() == ["next", "running"]


async def test_redis_restarted_empty_in_flight_every_job_of_the_outbox_is_applied_once(
    arq: ArqRedis, valkey: EmbeddedValkey, work: Work, session: AsyncSession, engine: AsyncEngine, effects: Effects
) -> None:
    gate = Gate()
    running = enqueue(session, Ping())
    await session.commit()
    async with work(calling(gate), concurrency=1) as worker:
        await gate.reached.wait()
        waiting = [enqueue(session, Ping()) for _ in range(5)]
        backing_off = enqueue(session, Ping(), delay=timedelta(seconds=0.5))
        await session.commit()

        async def are_sent() -> bool:
            return bool(await arq.zcard("arq:queue") == 7)

        await wait_until(are_sent)
        valkey.kill()
        valkey.start()
        gate.opened.set()
        for job_id in (*waiting, backing_off):
            await worker.outcome(job_id)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM worker.outbox"))).scalar_one() == 0
    assert await effects() == sorted([running, *waiting, backing_off])


async def test_the_password_of_the_url_is_in_no_line_of_the_log(
    arq: ArqRedis, valkey: EmbeddedValkey, work: Work, logged: Logged
) -> None:
    await arq.acl_setuser("ann", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    url = valkey.url.replace("redis://", "redis://ann:hunter2@")
    async with work(PING, redis_url=url) as worker:
        await is_said(logged, "redis_away")
        await worker.stop()
    await arq.acl_deluser("ann")
    assert "AuthenticationError" in str(logged)
    assert "hunter2" not in str(logged) + str(worker.faults)


async def test_behind_an_address_that_moves_the_worker_follows_to_the_new_primary(
    redis: Redis, proxy: RedisProxy, work: Work, logged: Logged
) -> None:
    """The old one lives on as a replica, keeps its connections, and answers each of their commands."""
    with EmbeddedValkey() as second:
        promoted = Redis.from_url(second.url)
        parts = urlsplit(second.url)
        try:
            await Queue(redis).enqueue(Ping(), job_id="before")
            async with work(PING, redis_url=proxy.url) as worker:
                await worker.outcome("before")
                proxy.lead_to(second.url)
                await redis.replicaof(parts.hostname, parts.port)
                await Queue(promoted).enqueue(Ping(), job_id="after")
                await worker.outcome("after")
        finally:
            await redis.replicaof("NO", "ONE")
            await promoted.aclose()
    assert worker.faults == []
    # Each connection that still leads to the old one may be met once, after another was found good.
    assert redis_events(logged).count("redis_away") <= 3
