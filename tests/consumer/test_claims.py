"""Claims: one script takes what is due, whatever lies in its way."""

import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from tests.support.waiting import wait_until
from worker.cancel import TAKE_MESSAGE
from worker.claim import Claim, readable_id
from worker.claim_script import PAGE, PAGES
from worker.claims import Claims
from worker.endings import Finish, PutBack
from worker.job import MAX_PAYLOAD_BYTES
from worker.limits import Gate, Limits
from worker.wire import MAX_MESSAGE_BYTES

QUEUE = "arq:queue"
LEASE = timedelta(seconds=15)


@pytest.fixture
def claims(redis: Redis) -> Claims:
    return Claims(redis, LEASE)


async def now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def put(redis: Redis, job_id: str | bytes, message: bytes = b"{}", due_ms: float = 1) -> None:
    raw = job_id.encode() if isinstance(job_id, str) else job_id
    await redis.set(b"arq:job:" + raw, message)
    await redis.zadd(QUEUE, {raw: due_ms})


def ids(taken: list[Claim]) -> list[str]:
    return [claim.job_id for claim in taken]


async def test_as_many_as_there_are_free_slots_oldest_first(redis: Redis, claims: Claims) -> None:
    for n in (3, 1, 2, 4):
        await put(redis, f"job-{n}", due_ms=n)
    assert ids(await claims.take([QUEUE], 3, "me")) == ["job-1", "job-2", "job-3"]
    assert ids(await claims.take([QUEUE], 3, "me")) == ["job-4"]
    assert await claims.take([QUEUE], 3, "me") == []


async def test_a_claim_sets_the_in_progress_key_to_its_token_and_the_original_due_time(
    redis: Redis, claims: Claims
) -> None:
    due = await now_ms(redis) - 5000
    await put(redis, "a", b"the message", due_ms=due)
    [claim] = await claims.take([QUEUE], 1, "me")
    assert claim == Claim("a", b"a", QUEUE, f"me:{due}", b"the message", due, claim.claimed_ms, 0, aborted=False)
    assert await redis.get("arq:in-progress:a") == f"me:{due}".encode()
    assert 0 < await redis.pttl("arq:in-progress:a") <= 15_000
    assert abs(claim.claimed_ms - due - 5000) < 5000


async def test_a_claim_moves_the_score_to_the_end_of_the_lease(redis: Redis, claims: Claims) -> None:
    await put(redis, "a")
    [claim] = await claims.take([QUEUE], 1, "me")
    assert await redis.zscore(QUEUE, "a") == claim.claimed_ms + 15_000


async def test_a_job_that_was_put_back_as_unknown_is_left_to_others_for_a_second(redis: Redis, claims: Claims) -> None:
    await put(redis, "unknown")
    await put(redis, "known")
    for claim in await claims.take([QUEUE], 2, "me"):
        await claims.settle([PutBack(claim, timedelta(seconds=5), others_first=claim.job_id == "unknown")])
    assert await redis.zscore(QUEUE, "unknown") % 1 == 0.5
    due = await now_ms(redis) + 0.5
    await redis.zadd(QUEUE, {"unknown": due - 1, "known": due - 0.5})
    taken = await claims.take([QUEUE], 2, "me")
    assert "known" in ids(taken)
    assert ids(taken) == ["known"] or taken[0].claimed_ms >= due + 999
    await redis.zadd(QUEUE, {"unknown": due - 1001})
    assert "unknown" in ids(taken + await claims.take([QUEUE], 2, "me"))


async def test_an_abort_outlives_whoever_read_it_and_goes_with_its_job(redis: Redis, claims: Claims) -> None:
    await put(redis, "a")
    await redis.zadd("arq:abort", {"a": 1})
    [first] = await claims.take([QUEUE], 1, "killed")
    await claims.settle([PutBack(first)])
    [second] = await claims.take([QUEUE], 1, "me")
    assert (first.aborted, second.aborted) == (True, True)
    await claims.settle([Finish(second)])
    assert await redis.exists("arq:abort") == 0


async def test_a_claim_takes_the_messages_expiry_away(redis: Redis, claims: Claims) -> None:
    await put(redis, "a")
    await redis.expire("arq:job:a", 100)
    await claims.take([QUEUE], 1, "me")
    assert await redis.ttl("arq:job:a") == -1


async def test_what_is_not_due_by_the_clock_of_redis_stays_whatever_the_workers_clock_says(
    redis: Redis, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(redis, "later", due_ms=await now_ms(redis) + 60_000)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    monkeypatch.setattr(time, "time_ns", lambda: int(tomorrow * 1e9))
    assert await claims.take([QUEUE], 1, "me") == []


async def test_a_message_at_the_limit_comes_alone(redis: Redis, claims: Claims) -> None:
    for n, size in enumerate((10, MAX_PAYLOAD_BYTES, 10, MAX_MESSAGE_BYTES * 3, 10)):
        await put(redis, f"job-{n}", b"x" * size, due_ms=n + 1)
    assert ids(await claims.take([QUEUE], 9, "me")) == ["job-0", "job-1", "job-2"]
    assert ids(await claims.take([QUEUE], 9, "me")) == ["job-3"]
    assert claims.has_more
    assert ids(await claims.take([QUEUE], 9, "me")) == ["job-4"]
    assert not claims.has_more


async def test_a_claim_that_ends_before_the_end_of_what_is_due_says_so(redis: Redis, claims: Claims) -> None:
    many = PAGE * PAGES + 10
    await redis.mset({f"arq:job:job-{n}": b"{}" for n in range(many)})
    await redis.zadd(QUEUE, {f"job-{n}": n + 1 for n in range(many)})
    assert len(await claims.take([QUEUE], many + 1, "me")) == PAGE * PAGES
    assert claims.has_more
    assert await redis.exists(f"ratchet:idle:{QUEUE}") == 0
    assert len(await claims.take([QUEUE], many + 1, "me")) == 10
    assert not claims.has_more


async def test_jobs_that_a_stock_worker_holds_are_passed_over_and_their_score_is_not_moved(
    redis: Redis, claims: Claims
) -> None:
    for n in range(5):
        await put(redis, f"held-{n}", due_ms=n + 1)
        await redis.set(f"arq:in-progress:held-{n}", "1", px=300_000)
    await put(redis, "free", due_ms=9)
    assert ids(await claims.take([QUEUE], 1, "me")) == ["free"]
    assert await redis.zrange(QUEUE, 0, 4, withscores=True) == [(f"held-{n}".encode(), n + 1) for n in range(5)]
    assert await redis.get("arq:in-progress:held-0") == b"1"


async def test_however_many_are_held_the_claims_come_past_them_in_bounded_steps(redis: Redis, claims: Claims) -> None:
    held = [f"held-{n}" for n in range(PAGE * PAGES + 50)]
    async with redis.pipeline() as pipe:
        for place, job_id in enumerate(held):
            pipe.zadd(QUEUE, {job_id: place + 1})
            pipe.set(f"arq:in-progress:{job_id}", "1", px=300_000)
        await pipe.execute()
    await put(redis, "free", due_ms=len(held) + 1)
    assert await claims.take([QUEUE], 1, "me") == []
    assert ids(await claims.take([QUEUE], 1, "me")) == ["free"]
    await redis.delete("arq:in-progress:held-0")
    assert ids(await claims.take([QUEUE], 1, "me")) == ["held-0"]


async def test_two_claims_never_take_the_same_job(redis: Redis, claims: Claims) -> None:
    await put(redis, "a")
    other = Claims(redis, LEASE)
    assert ids(await claims.take([QUEUE], 1, "me")) == ["a"]
    await redis.zadd(QUEUE, {"a": 1})  # even where its score says that it is due
    assert await other.take([QUEUE], 1, "other") == []


@pytest.mark.parametrize("raw_id", [b"\xff\xfe", b"nul\0", "naïve ☃".encode(), b"x" * 10_000, b"", b"\xff" * 600])
async def test_an_id_may_be_any_bytes(redis: Redis, claims: Claims, raw_id: bytes) -> None:
    await put(redis, raw_id)
    [claim] = await claims.take([QUEUE], 1, "me")
    assert claim.raw_id == raw_id
    assert "\0" not in claim.job_id
    assert len(claim.job_id.encode()) <= 1000
    assert await claims.is_held(claim)
    assert await claims.settle([Finish(claim)]) == [True]
    assert await redis.keys("*") == []


def test_two_overlong_ids_are_two_in_the_ledger() -> None:
    assert readable_id(b"x" * 2000) != readable_id(b"x" * 2001)
    assert readable_id(b"x" * 2000).startswith("x" * 100)


async def test_keys_of_a_wrong_type_or_value_keep_no_other_job_from_being_claimed(redis: Redis, claims: Claims) -> None:
    await redis.zadd("arq:job:set", {"a": 1})
    await redis.zadd(QUEUE, {"set": 1})
    await put(redis, "list", due_ms=2)
    await redis.zadd("arq:retry:list", {"a": 1})
    await put(redis, "text", due_ms=3)
    await redis.set("arq:retry:text", "many")
    await put(redis, "huge", due_ms=4)
    await redis.set("arq:retry:huge", "9" * 5000)
    await put(redis, "always", due_ms=float("-inf"))
    await put(redis, "good", due_ms=5)
    await redis.set("arq:retry:good", "3")
    taken = await claims.take([QUEUE], 9, "me")
    assert [(claim.job_id, claim.failures) for claim in taken] == [
        ("always", 0), ("set", 0), ("list", 0), ("text", 0), ("huge", 0), ("good", 3),
    ]  # fmt: skip
    assert taken[0].due_ms == 0
    assert taken[1].message is None
    assert await claims.settle([PutBack(claim) for claim in taken]) == [True] * 6
    for claim in taken:
        assert await redis.exists(f"arq:in-progress:{claim.job_id}") == 0
    assert await redis.zscore(QUEUE, "always") == 0
    taken = await claims.take([QUEUE], 9, "me")
    assert await claims.settle([Finish(claim) for claim in taken]) == [True] * 6
    assert await redis.keys("*") == [b"ratchet:idle:arq:queue"]


async def test_a_job_whose_lease_ran_out_comes_before_a_backlog_that_was_due_before_it(redis: Redis) -> None:
    """Its score is the lease's end, and a killed worker's jobs would wait for all that became due meanwhile."""
    brief = Claims(redis, timedelta(milliseconds=50))
    await put(redis, "abandoned")
    [claim] = await brief.take([QUEUE], 1, "killed")
    for n in range(20):
        await put(redis, f"job-{n}", due_ms=n + 1)

    async def has_expired() -> bool:
        return not await redis.exists("arq:in-progress:abandoned") and await now_ms(redis) > claim.claimed_ms + 50

    await wait_until(has_expired)
    assert ids(await brief.take([QUEUE], 2, "me")) == ["abandoned", "job-0"]


async def has_expired(redis: Redis, claim: Claim) -> bool:
    key = f"arq:in-progress:{claim.job_id}"
    return not await redis.exists(key) and await now_ms(redis) > claim.claimed_ms + BRIEF_MS


BRIEF_MS = 50


@pytest.mark.parametrize("by", ["cancel", "stock worker"])
async def test_a_lease_that_somebody_else_has_ended_brings_no_job_before_its_time(
    redis: Redis, claims: Claims, by: str
) -> None:
    """Who cancels, and a stock arq worker that takes over and retries later, leave the lease's entry behind."""
    await put(redis, "a", b"first")
    [claim] = await Claims(redis, timedelta(milliseconds=BRIEF_MS)).take([QUEUE], 1, "killed")
    await wait_until(partial(has_expired, redis, claim))
    if by == "cancel":
        take: Any = redis.register_script(TAKE_MESSAGE)
        assert await take(keys=[QUEUE], args=["a", b"first", 0]) == 2
        assert await redis.exists(f"ratchet:leases:{QUEUE}") == 0
    await put(redis, "a", b"second", due_ms=await now_ms(redis) + 3_600_000)
    assert await claims.take([QUEUE], 1, "me") == []
    await redis.zadd(QUEUE, {"a": 1})
    [again] = await claims.take([QUEUE], 1, "me")
    assert not again.is_suspect


async def test_what_a_lease_ran_out_under_is_a_suspect_until_it_comes_through(redis: Redis) -> None:
    """More than a page of them, and one that is put back unexamined is one for the next worker, too."""
    brief, claims = Claims(redis, timedelta(milliseconds=BRIEF_MS)), Claims(redis, LEASE)
    for n in range(PAGE + 5):
        await put(redis, f"job-{n}")
    taken = await brief.take([QUEUE], PAGE + 5, "killed")
    assert not any(claim.is_suspect for claim in taken)
    await wait_until(partial(has_expired, redis, taken[-1]))
    suspects = await claims.take([QUEUE], PAGE + 5, "next")
    assert [claim.is_suspect for claim in suspects] == [True] * (PAGE + 5)
    first, second, third, *others = suspects
    await claims.settle([Finish(claim) for claim in others])
    again = [PutBack(first), PutBack(second, timedelta(milliseconds=1)), PutBack(third, cleared=True)]
    assert await claims.settle(again) == [True] * 3

    due_ms = await now_ms(redis) + 1

    async def is_due() -> bool:
        return await now_ms(redis) > due_ms

    await wait_until(is_due)
    taken = await claims.take([QUEUE], 5, "last")
    assert {claim.job_id: claim.is_suspect for claim in taken} == {
        first.job_id: True,
        second.job_id: True,
        third.job_id: False,
    }


async def test_a_suspect_that_a_limit_keeps_from_starting_stays_a_suspect(redis: Redis) -> None:
    """It isn't parked: in a parking it would look like any other."""
    limits = Limits({"one": Gate("one", max_concurrent=1)})
    brief = Claims(redis, timedelta(milliseconds=BRIEF_MS), limits)
    claims = Claims(redis, LEASE, limits)
    message = b'{"t":null,"f":"one","a":[],"k":{},"et":1}'
    await put(redis, "suspect", message)
    [claim] = await brief.take([QUEUE], 1, "killed")
    await wait_until(partial(has_expired, redis, claim))
    await redis.zadd("ratchet:permits:one", {"another": await now_ms(redis) + 60_000})
    assert await claims.take([QUEUE], 5, "me") == []
    await redis.delete("ratchet:permits:one")

    async def is_taken() -> bool:
        taken = await claims.take([QUEUE], 5, "me")
        return [(claim.job_id, claim.is_suspect) for claim in taken] == [("suspect", True)]

    await wait_until(is_taken)
    assert await redis.keys("ratchet:parked:*") == []


async def test_a_queue_whose_name_is_another_key_s_holds_up_no_other(redis: Redis, claims: Claims) -> None:
    await redis.set("bulk", "no queue", px=60_000)
    await put(redis, "a")
    with structlog.testing.capture_logs() as logs:
        assert ids(await claims.take(["bulk", QUEUE], 9, "me")) == ["a"]
        for _ in range(4):
            assert await claims.look(["bulk", QUEUE]) is not None
    assert [(line["event"], line["queue"]) for line in logs] == [("queue_refused", "bulk")]
    await redis.flushall()
