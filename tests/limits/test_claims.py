"""What the claim script does with limits: permits as leases, rates by Redis's clock, and parking."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.consumer.jobs import Ping, Pong
from tests.support.waiting import wait_until
from worker.cancel import cancel
from worker.claim import Claim
from worker.claims import Claims
from worker.endings import Finish, PutBack
from worker.job import Job
from worker.limit_script import LIMIT_STAYS_MS, SETTLES_MS
from worker.limits import Gate, Limits, Paused, Rate
from worker.queue import Queue
from worker.sweep import WHOLE
from worker.wake import IDLE_KEY

QUEUE = "arq:queue"
LEASE = timedelta(seconds=15)
HOUR = timedelta(hours=1)
PARKED = "ratchet:parked:arq:queue/ping"
PERMITS = "ratchet:permits:ping"
STARTS = "ratchet:rate:ping"

Made = Callable[..., Claims]


@pytest.fixture
def worker(redis: Redis) -> Made:
    """Make the claims of another worker; gates are of `ping`, which is called `pin` too."""

    def made(limits: Limits | None = None, lease: timedelta = LEASE, **gate: int | Rate) -> Claims:
        known = Gate("ping", **gate)  # type: ignore[arg-type]  # the test knows which is which
        return Claims(redis, lease, limits or Limits({"ping": known, "pin": known}))

    return made


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.job_id for claim in claims]


async def put(redis: Redis, *jobs: tuple[str, Job]) -> None:
    for job_id, job in jobs:
        assert await Queue(redis).enqueue(job, job_id=job_id)


async def pings(redis: Redis, count: int) -> list[str]:
    return await Queue(redis).enqueue_many(Ping(n=n) for n in range(count))


async def empty(redis: Redis) -> None:
    await redis.flushall()


async def test_no_more_than_the_limit_over_all_workers_and_others_pass(redis: Redis, worker: Made) -> None:
    sent = await pings(redis, 5)
    await put(redis, ("other", Pong()))
    one, other = worker(max_concurrent=2), worker(max_concurrent=2)
    taken = await one.take([QUEUE], 9, "one")
    assert sorted(ids(taken)) == sorted([*sent[:2], "other"])
    assert [claim.limited for claim in taken] == ["ping", "ping", ""]
    assert await other.take([QUEUE], 9, "other") == []
    assert await redis.zcard(PARKED) == 3
    assert await one.settle([Finish(taken[0])]) == [True]
    assert len(await other.take([QUEUE], 9, "other")) == 1
    assert await one.take([QUEUE], 9, "one") == []
    await empty(redis)


async def test_a_parked_job_keeps_its_place_and_its_due_time(redis: Redis, worker: Made) -> None:
    claims = worker(max_concurrent=1)
    sent = await pings(redis, 4)
    scores = {job_id: await redis.zscore(QUEUE, job_id) for job_id in sent}
    started: list[str] = []
    for _ in sent:
        [claim] = await claims.take([QUEUE], 9, "me")
        started.append(claim.job_id)
        assert claim.due_ms == scores[claim.job_id]
        await claims.settle([Finish(claim)])
    assert started == sorted(sent)
    assert await claims.take([QUEUE], 9, "me") == []
    assert await redis.keys("ratchet:parked:*") + await redis.keys("arq:*") == []


async def test_the_message_of_a_parked_job_doesnt_expire_however_long_it_waits(redis: Redis, worker: Made) -> None:
    """A stock client's has a lifetime of a day, and a pause may last longer."""
    await put(redis, ("long", Ping()))
    await redis.pexpire("arq:job:long", 60_000)
    limits = Limits({})
    limits.pause(Paused(names=frozenset({"ping"})))
    claims = worker(limits)
    assert await claims.take([QUEUE], 9, "one") == []
    assert await redis.pttl("arq:job:long") == -1
    limits.pause(Paused())
    assert ids(await claims.take([QUEUE], 9, "one")) == ["long"]
    await empty(redis)


async def test_a_backlog_of_limited_jobs_is_met_once_and_costs_later_claims_nothing(redis: Redis, worker: Made) -> None:
    claims = worker(max_concurrent=1)
    await pings(redis, 2500)
    await put(redis, ("behind", Pong()))
    assert len(await claims.take([QUEUE], 1, "me")) == 1
    assert ids(await claims.take([QUEUE], 1, "me")) == ["behind"]
    assert await redis.zcard(PARKED) == 2499
    before = await commands(redis)
    assert await claims.take([QUEUE], 100, "me") == []
    assert await commands(redis) - before < 20
    await empty(redis)


async def commands(redis: Redis) -> int:
    stats: dict[str, dict[str, int]] = await redis.info("commandstats")
    return sum(stat["calls"] for stat in stats.values())


async def test_a_killed_workers_permits_come_back_with_the_end_of_its_lease(redis: Redis, worker: Made) -> None:
    brief, other = worker(lease=timedelta(milliseconds=200), max_concurrent=1), worker(max_concurrent=1)
    sent = await pings(redis, 2)
    [killed] = await brief.take([QUEUE], 1, "killed")
    assert await other.take([QUEUE], 1, "other") == []
    reopens = await other.look([QUEUE])
    assert reopens is not None
    assert reopens < 1000

    taken: list[Claim] = []
    async with asyncio.timeout(10):
        while not taken:  # at once: in the very millisecond in which the lease ends, too
            taken = await other.take([QUEUE], 9, "other")
    assert ids(taken) == [killed.job_id] == sent[:1]
    assert await redis.zrange(PERMITS, 0, -1) == [sent[0].encode()]
    await empty(redis)


async def test_what_is_put_back_gives_its_permit_back(redis: Redis, worker: Made) -> None:
    claims = worker(max_concurrent=1)
    sent = await pings(redis, 2)
    [first] = await claims.take([QUEUE], 9, "me")
    await claims.settle([PutBack(first, HOUR)])
    [second] = await claims.take([QUEUE], 9, "me")
    assert second.job_id == sent[1]
    await redis.set(f"arq:in-progress:{second.job_id}", "another's")
    assert await claims.settle([PutBack(second)]) == [False]
    assert await redis.zcard(PERMITS) == 1, "who has lost the lease gives nothing back"
    await empty(redis)


async def test_a_permit_comes_back_though_another_job_of_the_id_came_meanwhile(redis: Redis, worker: Made) -> None:
    """The worker was cut off, and Redis was wiped (worker/lease_script.py)."""
    claims = worker(max_concurrent=1)
    await pings(redis, 2)
    [claim] = await claims.take([QUEUE], 9, "me")
    claim.is_restored = True
    await redis.set(f"arq:job:{claim.job_id}", b'{"t":null,"f":"pong","a":[],"k":{},"et":1}')
    assert await claims.settle([Finish(claim)]) == [False]
    assert await redis.exists(PERMITS, f"{IDLE_KEY}/ping") == 0
    assert len(await claims.take([QUEUE], 9, "me")) == 2
    await empty(redis)


async def test_a_permit_that_is_given_back_wakes_who_found_none(redis: Redis, worker: Made) -> None:
    claims = worker(max_concurrent=1)
    await pings(redis, 2)
    [claim] = await claims.take([QUEUE], 1, "me")
    assert await claims.take([QUEUE], 1, "me") == []
    assert await redis.exists(f"{IDLE_KEY}/ping") == 1
    await claims.settle([Finish(claim)])
    assert await redis.exists(f"{IDLE_KEY}/ping") == 0
    await empty(redis)


async def test_after_a_wipe_nothing_that_is_limited_starts_until_living_workers_have_restored_their_permits(
    redis: Redis, worker: Made
) -> None:
    one, other = (worker(lease=timedelta(milliseconds=300), max_concurrent=1) for _ in range(2))
    await pings(redis, 1)
    assert len(await one.take([QUEUE], 9, "one")) == 1
    assert await other.take([QUEUE], 9, "other") == []
    await empty(redis)
    sent = await pings(redis, 1)
    await put(redis, ("free", Pong()))
    assert ids(await other.take([QUEUE], 9, "other")) == ["free"]
    assert await worker(max_concurrent=1).take([QUEUE], 9, "new") == [], "which is told of the wipe by the other"
    opens = await other.look([QUEUE])
    assert opens is not None
    assert 0 < opens <= 100 + SETTLES_MS

    async def starts() -> bool:
        return ids(await other.take([QUEUE], 9, "other")) == sent

    await wait_until(starts)
    await empty(redis)


async def test_a_clock_that_was_set_back_after_a_wipe_holds_up_nothing_until_the_old_time_has_come(
    redis: Redis, worker: Made
) -> None:
    claims = worker(lease=timedelta(milliseconds=300), max_concurrent=1)
    seconds, _ = await redis.time()
    await redis.set("ratchet:since", f"{(seconds + 24 * 3600) * 1000}w")
    sent = await pings(redis, 1)

    async def starts() -> bool:
        return ids(await claims.take([QUEUE], 9, "me")) == sent

    await wait_until(starts)
    await empty(redis)


async def test_a_rate_is_held_over_all_workers_by_the_clock_of_redis(redis: Redis, worker: Made) -> None:
    rate = Rate(3, HOUR)
    one, other = worker(rate=rate), worker(rate=rate)
    await pings(redis, 5)
    taken = await one.take([QUEUE], 2, "one")
    assert len(taken) == 2
    taken += await other.take([QUEUE], 9, "other")
    assert len(taken) == 3
    await one.settle([Finish(claim) for claim in taken])
    assert await one.take([QUEUE], 9, "one") == []
    reopens = await one.look([QUEUE])
    assert reopens is not None
    assert round(reopens / 60_000) == 60, "three at once: the next in an hour"
    assert await redis.zcard(PARKED) == 2
    await empty(redis)


async def test_what_goes_on_or_has_not_begun_has_its_start(redis: Redis, worker: Made) -> None:
    claims, other = worker(rate=Rate(1, HOUR)), worker(rate=Rate(1, HOUR))
    sent = await pings(redis, 2)
    for turn in range(3):
        [claim] = await claims.take([QUEUE], 9, f"turn-{turn}")
        assert claim.job_id == sent[0]
        await claims.settle([PutBack(claim, has_started=True)])
    assert await redis.zcard(STARTS) == 1
    [claim] = await other.take([QUEUE], 9, "other")
    await other.settle([PutBack(claim)])
    assert await other.take([QUEUE], 9, "other") == [], "a retry is a start too"
    await empty(redis)


async def test_what_goes_on_after_a_pause_has_its_start_still(redis: Redis) -> None:
    limits = Limits({"ping": Gate("ping", rate=Rate(1, HOUR))})
    claims, [job_id] = Claims(redis, LEASE, limits), await pings(redis, 1)
    [claim] = await claims.take([QUEUE], 9, "before")
    await claims.settle([PutBack(claim, has_started=True)])
    limits.pause(Paused(names=frozenset({"ping"})))
    assert await claims.take([QUEUE], 9, "paused") == []
    limits.pause(Paused())

    async def goes_on() -> bool:
        return ids(await claims.take([QUEUE], 9, "resumed")) == [job_id]

    await wait_until(goes_on)
    await empty(redis)


async def test_what_goes_on_comes_before_those_that_are_newer(redis: Redis, worker: Made) -> None:
    """Or a chunked job, which gives its permit back after its turn, would wait for as long as others come."""
    claims, taken = worker(max_concurrent=1, rate=Rate(10_000, HOUR)), list[Claim]()

    async def is_taken() -> bool:
        taken[:] = await claims.take([QUEUE], 9, "me")
        return bool(taken)

    [goes_on, *others] = await pings(redis, 2)
    await wait_until(is_taken)
    await claims.settle([PutBack(taken[0], has_started=True)])
    await wait_until(is_taken)
    assert ids(taken) == others
    while taken[0].job_id in others:
        others += await pings(redis, 1)
        assert await claims.take([QUEUE], 9, "me") == []
        await claims.settle([Finish(taken[0])])
        await wait_until(is_taken)
        assert len(others) < 10
    assert ids(taken) == [goes_on]
    await claims.settle([Finish(taken[0])])
    assert await redis.exists("ratchet:kept:ping") == 0, "no place is kept any more"
    await empty(redis)


async def test_no_window_has_more_starts_than_the_rate_allows(redis: Redis, worker: Made) -> None:
    """Three an hour, of which two started half an hour ago, and one longer ago than that counts."""
    claims = worker(rate=Rate(3, HOUR))
    seconds, _ = await redis.time()
    now_ms, hour_ms = seconds * 1000, 3_600_000
    starts = {"old": now_ms - hour_ms - 5_000, "one": now_ms - hour_ms / 2, "two": now_ms - hour_ms / 2}
    await redis.zadd(STARTS, starts)
    await pings(redis, 3)
    [claim] = await claims.take([QUEUE], 9, "me")
    await claims.settle([Finish(claim)])
    reopens = await claims.look([QUEUE])
    assert reopens is not None
    assert round(reopens / 60_000) == 30
    assert await redis.pttl(STARTS) > hour_ms - 5_000
    await empty(redis)


async def test_a_clock_that_was_set_back_doesnt_close_a_rate_for_longer_than_its_time(
    redis: Redis, worker: Made
) -> None:
    claims = worker(rate=Rate(1, HOUR))
    seconds, _ = await redis.time()
    await redis.zadd(STARTS, {"by another clock": (seconds + 24 * 3600) * 1000})
    await pings(redis, 1)
    assert len(await claims.take([QUEUE], 9, "me")) == 1
    await empty(redis)


async def test_what_a_rate_held_back_starts_when_its_time_has_come(redis: Redis, worker: Made) -> None:
    claims = worker(rate=Rate(1, timedelta(milliseconds=50)))
    sent = await pings(redis, 3)
    started: list[str] = []

    async def are_started() -> bool:
        due = await claims.look([QUEUE])
        if due is not None and due <= 0:
            started.extend(ids(await claims.take([QUEUE], 9, "me")))
        return len(started) == 3

    await wait_until(are_started)
    assert started == sorted(sent)
    await empty(redis)


async def test_an_alias_shares_the_limit_however_the_message_is_written(redis: Redis, worker: Made) -> None:
    claims = worker(max_concurrent=1)
    texts = (
        b'{"t":null,"f":"ping","a":[],"k":{},"et":1}',
        b' { "t": 1, "f": "pin", "a": [], "k": {}, "et": 1}',
        b'{"k":{"f":"pong"},"a":[],"et":1,"f":"ping"}',
        b'{"t":null,"f":"p\\u0069ng","a":[],"k":{},"et":1}',
    )
    for n, message in enumerate(texts):
        await redis.set(f"arq:job:{n}", message)
        await redis.zadd(QUEUE, {str(n): n})
    await redis.set("arq:job:pickle", b"\x80\x04\x95")
    await redis.zadd(QUEUE, {"pickle": 9})
    assert ids(await claims.take([QUEUE], 9, "me")) == ["0", "pickle"]
    assert await redis.zrange(PARKED, 0, -1) == [b"1", b"2", b"3"]
    await empty(redis)


async def test_who_knows_no_limit_any_more_takes_what_was_parked(redis: Redis, worker: Made) -> None:
    sent = await pings(redis, 4)
    assert len(await worker(max_concurrent=1).take([QUEUE], 9, "before the deploy")) == 1
    later = Claims(redis, LEASE, Limits({"ping": Gate("ping")}))
    assert ids(await later.take([QUEUE], 2, "after it")) == sorted(sent)[1:3]
    assert ids(await later.take([QUEUE], 2, "after it")) == sorted(sent)[3:]
    assert await redis.keys("ratchet:parked:*") == []
    await empty(redis)


async def test_what_was_paused_all_comes_after_the_resume(redis: Redis, worker: Made) -> None:
    limits = Limits({"ping": Gate("ping"), "pin": Gate("ping")})
    limits.pause(Paused(names=frozenset({"ping"})))
    claims = worker(limits)
    await pings(redis, 500)
    assert await claims.take([QUEUE], 150, "paused") == []
    limits.pause(Paused())
    taken = len(await claims.take([QUEUE], 150, "resumed"))
    while claims.has_more:
        taken += len(await claims.take([QUEUE], 150, "resumed"))
    assert taken == 500
    await empty(redis)


async def test_who_doesnt_know_a_job_comes_to_its_own_before_those_that_others_have_parked(
    redis: Redis, worker: Made
) -> None:
    await put(redis, ("own", Pong()))
    await redis.zadd(QUEUE, {"own": 1})
    await pings(redis, 250)
    newer, older = worker(max_concurrent=1), Claims(redis, LEASE, Limits({"pong": Gate("pong")}))
    for claim in await newer.take([QUEUE], 3, "newer"):
        if claim.job_id == "own":
            await newer.settle([PutBack(claim)])
    assert await redis.zcard(PARKED) > 240
    assert ids(await older.take([QUEUE], 1, "older")) == ["own"]
    await empty(redis)


async def test_what_a_limit_parked_is_left_to_who_knows_it_for_as_long_as_that_one_tells(
    redis: Redis, worker: Made
) -> None:
    """Another app's worker on the same queue would take it, and put it back for some seconds, time and again."""
    sent = await pings(redis, 3)
    knows, other = worker(max_concurrent=1), Claims(redis, LEASE, Limits({"pong": Gate("pong")}))
    [running] = await knows.take([QUEUE], 9, "knows")
    assert await other.take([QUEUE], 9, "other") == []
    assert await redis.zcard(PARKED) == 2
    await redis.delete("ratchet:limit:ping")
    assert await knows.take([QUEUE], 9, "knows") == [], "which tells of it again"
    assert await other.take([QUEUE], 9, "other") == []
    assert 0 < await redis.pttl("ratchet:limit:ping") <= LIMIT_STAYS_MS
    await knows.settle([Finish(running)])
    assert ids(await knows.take([QUEUE], 9, "knows")) == sent[1:2]
    await redis.delete("ratchet:limit:ping")  # as when its last worker is gone
    assert ids(await other.take([QUEUE], 9, "other")) == sent[2:]
    await empty(redis)


async def test_a_paused_name_is_parked_and_goes_on_when_it_is_resumed(redis: Redis, worker: Made) -> None:
    limits = Limits({"ping": Gate("ping"), "pin": Gate("ping")})
    claims = worker(limits)
    limits.pause(Paused(names=frozenset({"pin"})))
    await put(redis, ("a", Ping()), ("b", Pong()))
    assert ids(await claims.take([QUEUE], 9, "me")) == ["b"]
    assert await claims.take([QUEUE], 9, "me") == []
    assert await claims.look([QUEUE]) != 0
    limits.pause(Paused())
    assert ids(await claims.take([QUEUE], 9, "me")) == ["a"]
    await empty(redis)


async def test_a_paused_queue_is_neither_looked_at_nor_claimed_from(redis: Redis) -> None:
    limits = Limits()
    claims = Claims(redis, LEASE, limits)
    await put(redis, ("a", Ping()))
    limits.pause(Paused(queues=frozenset({QUEUE})))
    assert await claims.take([QUEUE, "other"], 9, "me") == []
    assert await claims.look([QUEUE, "other"]) is None
    assert await claims.take([QUEUE], 9, "me") == []
    limits.pause(Paused())
    assert ids(await claims.take([QUEUE], 9, "me")) == ["a"]
    await empty(redis)


async def test_a_claim_that_asked_nothing_knows_nothing_of_aborts(redis: Redis) -> None:
    limits = Limits()
    claims = Claims(redis, LEASE, limits)

    async def asked() -> bool:
        assert await claims.take([QUEUE], 9, "me") == []
        return claims.are_aborts

    assert not await asked()
    limits.pause(Paused(queues=frozenset({QUEUE})))
    assert await asked()
    limits.pause(Paused())
    assert not await asked()
    await redis.zadd("arq:abort", {"a": 1})
    assert await asked()
    await redis.flushall()


async def test_a_parked_job_without_its_message_is_forgotten_and_the_sweep_sees_that(
    redis: Redis, worker: Made
) -> None:
    claims = worker(max_concurrent=1)
    sent = await pings(redis, 3)
    [running] = await claims.take([QUEUE], 9, "me")
    whole: Any = redis.register_script(WHOLE)
    asked = [part for job_id in sent for part in (job_id, QUEUE)]
    assert await whole(keys=[], args=asked) == []
    await redis.delete(f"arq:job:{sent[1]}")
    assert await whole(keys=[], args=asked) == [2]
    await claims.settle([Finish(running)])
    assert ids(await claims.take([QUEUE], 9, "me")) == [sent[2]]
    await empty(redis)


async def test_a_parked_job_that_is_held_goes_back_into_the_queue(redis: Redis, worker: Made) -> None:
    """The outbox sent it again, and a stock arq worker, which knows no limits, runs it."""
    claims = worker(max_concurrent=1)
    sent = await pings(redis, 2)
    [running] = await claims.take([QUEUE], 9, "me")
    await redis.set(f"arq:in-progress:{sent[1]}", "1", px=60_000)
    await claims.settle([Finish(running)])
    assert await claims.take([QUEUE], 9, "me") == []
    assert await redis.zrange(QUEUE, 0, -1) == [sent[1].encode()]
    assert await redis.exists(PARKED) == 0
    await empty(redis)


async def test_a_parked_job_can_be_cancelled(arq: ArqRedis, engine: AsyncEngine, worker: Made) -> None:
    sent = await pings(arq, 2)
    assert len(await worker(max_concurrent=1).take([QUEUE], 9, "me")) == 1
    done = await cancel(engine, arq, sent[1], ["other", QUEUE])
    assert (done.job_id, done.name) == (sent[1], "ping")
    assert await arq.exists(PARKED, f"arq:job:{sent[1]}") == 0
    await empty(arq)


async def test_a_suspect_is_not_passed_by_what_is_parked_behind_it(redis: Redis, worker: Made) -> None:
    claims = worker(lease=timedelta(milliseconds=50), max_concurrent=1)
    await put(redis, ("suspect", Ping()))
    assert ids(await claims.take([QUEUE], 1, "killed")) == ["suspect"]
    claims = worker(max_concurrent=1)
    await redis.zadd(PERMITS, {"running": 9e15})
    sent = await pings(redis, 3)

    async def is_postponed() -> bool:
        assert await claims.take([QUEUE], 9, "me") == []
        return bool(await redis.exists("ratchet:kept:ping"))

    await wait_until(is_postponed)
    await redis.zrem(PERMITS, "running")
    started: list[str] = []

    async def has_started() -> bool:
        due = await claims.look([QUEUE])
        if due is not None and due <= 0:
            started.extend(ids(await claims.take([QUEUE], 9, "me")))
        return bool(started)

    await wait_until(has_started)
    assert started == ["suspect"]
    await redis.zrem(PERMITS, "suspect")
    assert ids(await claims.take([QUEUE], 9, "me")) == [sent[0]], "no place is kept any more"
    await empty(redis)


async def test_what_another_deploy_parked_under_another_name_is_moved_once_a_claim(redis: Redis) -> None:
    """A job was renamed, and its old name is an alias: the old worker and the new one park it each in their own way."""
    was, now = Limits({"ping": Gate("ping")}), Limits({"ping": Gate("pong"), "pong": Gate("pong")})
    for limits in (was, now):
        limits.pause(Paused(names=frozenset({"ping"})))
    old, new = Claims(redis, LEASE, was), Claims(redis, LEASE, now)
    await pings(redis, 3)
    assert await old.take([QUEUE], 9, "old") == []
    before = await scripts_run(redis)
    assert await new.take([QUEUE], 9, "new") == []
    assert await old.take([QUEUE], 9, "old") == []
    assert await scripts_run(redis) == before + 2
    assert await redis.zcard(PARKED) == 3
    await empty(redis)


async def scripts_run(redis: Redis) -> int:
    return int((await redis.info("commandstats"))["cmdstat_evalsha"]["calls"])
