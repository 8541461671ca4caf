"""What stands under the runtime's own keys in Redis, and isn't ours, holds up nobody else's job and no health check."""

from typing import Any

import pytest

from tests.outbox.hands import AN_HOUR, Hands, Loose, Play
from worker.claims import Claims
from worker.epoch import MARKER_KEY
from worker.heartbeat import WORKER_KEY, WORKERS_SET, Heartbeat, beat, live_workers
from worker.limits import Gate, Limits, Rate
from worker.outcome import Completed
from worker.status import status
from worker.sweep import WHOLE

LIMITS = Limits({"test.loose": Gate("test.loose", 1, Rate(1, AN_HOUR))})


@pytest.mark.parametrize("kind", ["string", "zset"])
async def test_a_marker_that_isn_t_ours_is_replaced(kind: str, hands: Hands) -> None:
    [[installation]] = await hands.sql("select installation from worker.relay_state")
    key = f"{MARKER_KEY}{installation}"
    await (hands.redis.set(key, b"\xff") if kind == "string" else hands.redis.zadd(key, {"theirs": 1}))
    await hands.enqueue(Play())
    assert [type(outcome) for outcome in await hands.work()] == [Completed]


async def test_no_key_of_leases_keeps_jobs_from_being_claimed_and_ended(hands: Hands) -> None:
    await hands.redis.set("ratchet:leases:arq:queue", "theirs", ex=60)
    await hands.enqueue(Play(does="fail once"))
    assert (await hands.work())[-1] == Completed(result={"text": ""})


@pytest.mark.parametrize("key", ["ratchet:permits:test.loose", "ratchet:rate:test.loose"])
async def test_no_key_of_a_limit_keeps_jobs_of_another_name_from_being_claimed(key: str, hands: Hands) -> None:
    await hands.redis.set(key, "theirs", ex=60)
    await hands.enqueue(Loose(), Play())
    await hands.relay.drain()
    claims = Claims(hands.redis, AN_HOUR, LIMITS)
    [claim] = await claims.take(["arq:queue"], 9, "me")
    assert b"test.play" in (claim.message or b"")


@pytest.mark.parametrize("key", ["ratchet:parked:arq:queue", "ratchet:parked:arq:queue/test.loose"])
async def test_where_a_job_can_t_be_parked_it_stays_in_its_queue_and_others_are_claimed(key: str, hands: Hands) -> None:
    await hands.redis.set(key, "theirs", ex=60)
    await hands.enqueue(Loose(), Loose(), Play())
    await hands.relay.drain()
    claims = Claims(hands.redis, AN_HOUR, LIMITS)
    assert len(await claims.take(["arq:queue"], 9, "me")) == 2
    assert await hands.redis.zcard("arq:queue") == 3


async def test_what_isn_t_a_parking_hides_no_job_that_waits(hands: Hands) -> None:
    redis: Any = hands.redis  # whose types know no await for this command
    await redis.sadd("ratchet:parked:arq:queue", "theirs", "test.loose")
    await hands.redis.set("ratchet:parked:arq:queue/theirs", "theirs", ex=60)
    await hands.enqueue(Play())
    await hands.relay.drain()
    seen = await status(hands.engine, hands.redis, queues=["arq:queue"], known={"test.play"}, lease=AN_HOUR)
    assert [queue.waiting for queue in seen.queues] == [1]
    whole: Any = hands.redis.register_script(WHOLE)
    assert await whole(args=["nowhere", "arq:queue"]) == [1]
    assert len(await Claims(hands.redis, AN_HOUR, LIMITS).take(["arq:queue"], 9, "me")) == 1


async def test_a_worker_s_name_that_is_no_text_hides_no_other(hands: Hands) -> None:
    worker = Heartbeat("me", "host", 1, ("arq:queue",), 0, 1)
    await beat(hands.redis, worker)
    await hands.redis.zadd(WORKERS_SET, {b"\xff": 9e15})
    await hands.redis.expire(WORKERS_SET, 60)
    assert await live_workers(hands.redis) == [worker]
    await hands.redis.delete(WORKER_KEY + "me", WORKERS_SET)
