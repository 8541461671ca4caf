"""Leases: renewed where a blocked loop doesn't stop it, restored after a wipe, ended with the job's time."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from arq.connections import ArqRedis
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tests.consumer.conftest import Effects, Logged, Work
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.consumer.redis_proxy import RedisProxy
from tests.support.waiting import wait_until
from worker.claim import Claim
from worker.claims import Claims
from worker.dev import EmbeddedValkey
from worker.endings import Finish, PutBack
from worker.lease import Leases
from worker.outcome import Completed
from worker.queue import Queue
from worker.settings import load_settings

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


class Told:
    """What the leases' thread told."""

    def __init__(self) -> None:
        self.recycled = threading.Event()
        self.faults: list[BaseException] = []


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def leases(redis_url: str, told: Told) -> AsyncIterator[Leases]:
    leases = Leases(redis_url, SECOND, HOUR, recycle=told.recycled.set, fault=told.faults.append)
    leases.start()
    yield leases
    leases.stop()


async def claimed(redis: Redis, *job_ids: str) -> list[Claim]:
    for place, job_id in enumerate(job_ids):
        await redis.set(f"arq:job:{job_id}", "{}")
        await redis.zadd("arq:queue", {job_id: place + 1})
    return await Claims(redis, SECOND).take(["arq:queue"], len(job_ids), "me")


async def renewed(redis: Redis, claim: Claim) -> None:
    """Return when the lease has been renewed: the score is its end."""
    before = await redis.zscore(claim.queue, claim.job_id)

    async def has_moved() -> bool:
        return bool(await redis.zscore(claim.queue, claim.job_id) != before)

    await wait_until(has_moved)


def test_the_lease_is_15_seconds_and_a_third_of_it_is_between_renewals() -> None:
    settings = load_settings(database_url="postgresql:///any")
    assert settings.lease == 15
    leases = Leases("redis://", timedelta(seconds=settings.lease), SECOND, recycle=print, fault=print)
    assert leases.renew_every_s == 5


async def test_all_jobs_are_renewed_in_one_call(redis: Redis, leases: Leases) -> None:
    claims = await claimed(redis, "a", "b", "c")
    for claim in claims:
        leases.hold(claim)
    scores = await redis.zrange("arq:queue", 0, -1, withscores=True)
    async with redis.monitor() as monitor, asyncio.timeout(5):
        while "EVALSHA" not in (seen := await monitor.next_command())["command"]:
            pass
    assert all(f"{claim.job_id} {claim.token}" in seen["command"] for claim in claims)
    await renewed(redis, claims[0])
    after = await redis.zrange("arq:queue", 0, -1, withscores=True)
    assert all(new > old for (_, old), (_, new) in zip(scores, after, strict=True))
    for claim in claims:
        assert await redis.get(f"arq:in-progress:{claim.job_id}") == claim.token.encode()
        assert await redis.pttl(f"arq:in-progress:{claim.job_id}") > 0
    await redis.flushall()


async def test_a_missing_in_progress_key_is_restored_with_the_same_token(redis: Redis, leases: Leases) -> None:
    [claim] = await claimed(redis, "a")
    leases.hold(claim)
    await redis.flushall()

    async def is_restored() -> bool:
        return bool(await redis.get("arq:in-progress:a") == claim.token.encode())

    await wait_until(is_restored)
    assert await redis.zcard("arq:queue") == 0  # what is sent again is the relay's matter
    await redis.flushall()


async def test_in_a_full_redis_others_are_renewed_though_the_try_of_one_that_is_overdue_cant_be_counted(
    redis: Redis, redis_url: str, told: Told
) -> None:
    overdue, other = await claimed(redis, "overdue", "other")
    leases = Leases(redis_url, SECOND, HOUR, recycle=told.recycled.set, fault=told.faults.append, counts_tries=True)
    leases.hold(overdue)
    leases.hold(other)
    leases.extend(overdue, -2 * HOUR)
    await redis.config_set("maxmemory", 1)
    leases.start()
    try:
        await renewed(redis, other)
    finally:
        await redis.config_set("maxmemory", 0)

    async def is_counted() -> bool:
        return bool(await redis.get("arq:retry:overdue") == b"1")

    await wait_until(is_counted)
    leases.stop()
    assert told.recycled.is_set()
    await redis.flushall()


def test_who_takes_its_own_job_over_holds_it_by_the_new_claim() -> None:
    first, second = (Claim("a", b"a", "arq:queue", token, b"{}", 1, 1, 0, aborted=False) for token in ("old", "new"))
    leases = Leases("redis://", SECOND, SECOND, recycle=print, fault=print)
    leases.hold(first)
    assert leases.take_over(second)
    assert leases.current(first) is second
    leases.drop(second)
    assert leases.current(first) is first


OTHER = b'{"t":null,"f":"ping","a":[],"k":{},"et":2}'


async def test_another_job_that_has_the_id_by_now_is_left_alone(redis: Redis, leases: Leases, logged: Logged) -> None:
    """The lease had run out, and the job has ended elsewhere; this worker was cut off."""
    stale, kept = await claimed(redis, "stale", "kept")
    await redis.delete("arq:in-progress:stale")
    await redis.set("arq:job:stale", OTHER)
    leases.hold(stale)
    leases.hold(kept)
    before = await redis.zscore("arq:queue", "stale")
    for _ in range(2):
        await renewed(redis, kept)
    assert await redis.exists("arq:in-progress:stale") == 0
    assert await redis.zscore("arq:queue", "stale") == before
    assert [line["job_id"] for line in logged if line["event"] == "lease_lost"] == ["stale"]
    await redis.flushall()


@pytest.mark.parametrize("ending", [Finish, partial(PutBack, delay=SECOND, adopted=b"adopted", failures=1)])
async def test_another_job_that_came_while_the_key_was_gone_is_not_settled_with_the_first(
    redis: Redis, leases: Leases, ending: Callable[[Claim], Finish | PutBack]
) -> None:
    """Its id was free, as the worker of the first was cut off; that has restored its key before the other came."""
    [claim] = await claimed(redis, "a")
    await redis.flushall()
    leases.hold(claim)
    await wait_until(partial(is_held, redis, claim))
    await redis.set("arq:job:a", OTHER)
    await redis.zadd("arq:queue", {"a": 1})
    leases.drop(claim)
    await leases.renewed()
    assert await Claims(redis, SECOND).settle([ending(claim)]) == [False]
    assert await redis.mget("arq:job:a", "arq:retry:a", "arq:in-progress:a") == [OTHER, None, None]
    [other] = await Claims(redis, SECOND).take(["arq:queue"], 1, "me")
    assert (other.message, other.is_suspect) == (OTHER, False)
    await redis.flushall()


async def test_what_was_wiped_and_sent_again_is_settled_as_ever(redis: Redis, leases: Leases) -> None:
    [claim] = await claimed(redis, "a")
    await redis.flushall()
    leases.hold(claim)
    await wait_until(partial(is_held, redis, claim))
    await redis.set("arq:job:a", claim.message or b"")
    await redis.zadd("arq:queue", {"a": 1})
    leases.drop(claim)
    await leases.renewed()
    assert await Claims(redis, SECOND).settle([Finish(claim)]) == [True]
    assert await redis.keys("*") == []


async def is_held(redis: Redis, claim: Claim) -> bool:
    return await Claims(redis, SECOND).is_held(claim)


async def test_anothers_key_is_left_alone_and_the_loss_is_said_once(
    redis: Redis, leases: Leases, logged: Logged
) -> None:
    lost, kept = await claimed(redis, "lost", "kept")
    await redis.set("arq:in-progress:lost", "another's", px=60_000)
    leases.hold(lost)
    leases.hold(kept)
    for _ in range(3):
        await renewed(redis, kept)
    assert await redis.get("arq:in-progress:lost") == b"another's"
    assert await redis.pttl("arq:in-progress:lost") > 50_000
    said = [line for line in logged if line["event"] == "lease_lost"]
    assert [line["job_id"] for line in said] == ["lost"]
    await redis.flushall()


async def test_a_job_that_is_settled_is_not_taken_for_one_that_was_wiped(
    redis: Redis, redis_url: str, proxy: RedisProxy, told: Told
) -> None:
    """A renewal is under way, and held up, when the job is about to be settled."""
    leases = Leases(proxy.url, SECOND, SECOND, recycle=told.recycled.set, fault=told.faults.append)
    [claim] = await claimed(redis, "a")
    leases.hold(claim)
    proxy.hold_back(claim.token.encode())
    leases.start()
    await proxy.holds.wait()
    leases.drop(claim)
    renewed = asyncio.create_task(leases.renewed())
    await asyncio.sleep(0)
    assert not renewed.done()
    await renewed  # that renewal is given up by its timeout
    leases.stop()
    assert await Claims(redis, SECOND).settle([Finish(claim)]) == [True]
    assert await redis.keys("*") == []


async def test_behind_an_address_that_moves_the_thread_follows_to_the_new_primary(
    redis: Redis, proxy: RedisProxy, told: Told
) -> None:
    with EmbeddedValkey() as second:
        promoted = Redis.from_url(second.url)
        parts = urlsplit(second.url)
        leases = Leases(proxy.url, SECOND, HOUR, recycle=told.recycled.set, fault=told.faults.append)
        [claim] = await claimed(redis, "a")
        leases.hold(claim)
        leases.start()
        try:
            await renewed(redis, claim)
            proxy.lead_to(second.url)
            await redis.replicaof(parts.hostname, parts.port)

            async def is_held_there() -> bool:
                return bool(await promoted.get("arq:in-progress:a") == claim.token.encode())

            await wait_until(is_held_there)
        finally:
            await redis.replicaof("NO", "ONE")
            leases.stop()
            await promoted.aclose()
    await redis.flushall()


async def test_renewal_ends_at_the_jobs_timeout_and_grace_and_the_process_is_then_recycled(
    redis: Redis, redis_url: str, told: Told, logged: Logged
) -> None:
    grace = timedelta(milliseconds=500)
    leases = Leases(redis_url, SECOND, grace, recycle=told.recycled.set, fault=told.faults.append)
    overdue, long = await claimed(redis, "overdue", "long")
    leases.hold(overdue)
    leases.hold(long)
    leases.extend(overdue, timedelta(milliseconds=100))
    leases.extend(long, HOUR)
    leases.start()
    assert await asyncio.to_thread(told.recycled.wait, 5)

    async def has_run_out() -> bool:
        return not await redis.exists("arq:in-progress:overdue")

    await wait_until(has_run_out)
    leases.stop()
    assert await redis.get("arq:in-progress:long") == long.token.encode()
    assert [line["job_id"] for line in logged if line["event"] == "job_overdue"] == ["overdue"]
    await redis.flushall()


async def test_the_jobs_of_a_process_that_was_frozen_are_not_overdue(
    redis: Redis, redis_url: str, told: Told, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept for an hour, and so did the jobs, which may have as long as they had before."""
    slept = 0.0
    monkeypatch.setattr("worker.lease.time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept))
    leases = Leases(redis_url, SECOND, SECOND, recycle=told.recycled.set, fault=told.faults.append)
    [claim] = await claimed(redis, "a")
    leases.hold(claim)
    leases.extend(claim, timedelta(minutes=1))
    leases.start()
    await renewed(redis, claim)
    slept = 3600.0
    await renewed(redis, claim)
    leases.stop()
    assert not told.recycled.is_set()
    assert [line for line in logged if line["event"] == "job_overdue"] == []
    await redis.flushall()


async def test_the_thread_outlives_whatever_it_meets(redis: Redis, redis_url: str, told: Told) -> None:
    def fail() -> None:
        raise KeyError("a bug")

    leases = Leases(redis_url, SECOND, timedelta(0), recycle=fail, fault=told.faults.append)
    overdue, long = await claimed(redis, "overdue", "long")
    leases.hold(overdue)
    leases.hold(long)
    leases.extend(long, HOUR)
    leases.start()

    async def is_told() -> bool:
        return len(told.faults) >= 2

    await wait_until(is_told)
    leases.drop(overdue)
    await renewed(redis, long)
    leases.stop()
    await redis.flushall()


async def test_redis_away_is_said_once_and_the_leases_are_restored_when_it_is_back(
    redis: Redis, proxy: RedisProxy, told: Told, logged: Logged
) -> None:
    leases = Leases(proxy.url, SECOND, HOUR, recycle=told.recycled.set, fault=told.faults.append)
    [claim] = await claimed(redis, "a")
    leases.hold(claim)
    leases.start()
    await renewed(redis, claim)
    await proxy.away()

    async def has_run_out() -> bool:
        return not await redis.exists("arq:in-progress:a")

    await wait_until(has_run_out)
    await proxy.back()
    await renewed(redis, claim)
    leases.stop()
    assert await redis.get("arq:in-progress:a") == claim.token.encode()
    assert [line["event"] for line in logged] == ["leases_not_renewed"]
    assert told.faults == []
    await redis.flushall()


async def test_a_blocked_event_loop_loses_no_lease(arq: ArqRedis, redis_url: str, work: Work, effects: Effects) -> None:
    """The handler blocks the loop until it has seen the lease renewed, three times over."""

    def block() -> None:
        with SyncRedis.from_url(redis_url) as redis:
            for _ in range(3):
                before, deadline = redis.zscore("arq:queue", "blocks"), time.monotonic() + 5
                while redis.zscore("arq:queue", "blocks") == before:
                    assert time.monotonic() < deadline, "the lease wasn't renewed"

    await Queue(arq).enqueue(Ping(), job_id="blocks")
    async with work(calling(block)) as worker:
        assert await worker.outcome("blocks") == Completed(None)
    assert await effects() == ["blocks"]


async def test_a_job_runs_on_for_longer_than_its_lease_and_nobody_else_gets_it(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="long")
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        async with work(PING) as other:
            for _ in range(4):
                score = await arq.zscore("arq:queue", "long")

                async def is_renewed(before: float | None = score) -> bool:
                    return bool(await arq.zscore("arq:queue", "long") != before)

                await wait_until(is_renewed)
            gate.opened.set()
            await worker.outcome("long")
            assert other.outcomes == []
    assert await effects() == ["long"]


async def test_every_outcome_leaves_no_lease_behind(arq: ArqRedis, work: Work, effects: Effects) -> None:
    await Queue(arq).enqueue_many(Ping(n=n) for n in range(20))
    async with work(PING) as worker:

        async def are_done() -> bool:
            return len(worker.outcomes) == 20

        await wait_until(are_done)
        await worker.stop()
    assert await arq.keys("arq:in-progress:*") == []
    assert await arq.zcard("ratchet:leases:arq:queue") == 0


async def test_its_own_job_that_comes_back_is_held_by_the_new_claim_and_runs_once(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    """Its lease ran out while Redis was away, and there are free slots: it mustn't run against itself."""
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="mine")
    async with work(calling(gate), lease=3600) as worker:
        await gate.reached.wait()
        token = await arq.getdel("arq:in-progress:mine")
        await arq.zadd("arq:queue", {"mine": 1})

        async def is_held_anew() -> bool:
            return await arq.get("arq:in-progress:mine") not in {None, token}

        await wait_until(is_held_anew)
        gate.opened.set()
        assert isinstance(await worker.outcome("mine"), Completed)
        await worker.stop()
    assert worker.begun == ["mine"]
    assert await arq.exists("arq:job:mine", "arq:in-progress:mine") == 0
    assert await effects() == ["mine"]


async def test_another_job_of_the_same_id_is_put_back_until_the_first_has_ended(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    """Redis was emptied while the first one ran, and somebody used its id again."""
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="same")
    async with work(calling(gate), lease=3600) as worker:
        await gate.reached.wait()
        await arq.flushall()
        await arq.set("arq:job:same", b'{"t":null,"f":"ping","a":[],"k":{},"et":1}')
        await arq.zadd("arq:queue", {"same": 1})

        async def is_put_back() -> bool:
            score = await arq.zscore("arq:queue", "same")
            return score is not None and score > 1 and not await arq.exists("arq:in-progress:same")

        await wait_until(is_put_back)
        assert worker.begun == ["same"]
        gate.opened.set()
        assert isinstance(await worker.outcome("same", count=2), Completed)
    assert await effects() == ["same", "same"]


async def test_the_lease_grows_with_the_handlers_timeout(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the executor says to its hold reaches the leases."""
    extended: list[timedelta] = []

    def extend(_leases: Leases, _claim: Claim, timeout: timedelta) -> None:
        extended.append(timeout)

    monkeypatch.setattr(Leases, "extend", extend)
    await Queue(arq).enqueue(Ping(), job_id="a")
    async with work(calling(lambda: None, timeout=timedelta(seconds=77))) as worker:
        await worker.outcome("a")
    assert extended == [timedelta(seconds=77)]
