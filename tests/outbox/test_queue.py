"""`Queue`: jobs straight to Redis, as arq's `enqueue_job` sends them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis

from tests.outbox.hands import AN_HOUR, Hands, Play
from worker.job import Job
from worker.outcome import Completed, Duplicate
from worker.queue import Queue
from worker.wire import Message, decode


class Slow(Job, name="test.slow", queue="slow"):
    """Has a queue of its own."""


class Wide(Job, name="test.wide"):
    text: str


async def test_a_direct_job_is_applied_once_however_often_it_is_delivered(hands: Hands) -> None:
    job_id = await Queue(hands.redis).enqueue(Play(text="once"))
    assert job_id
    [claim] = await hands.take()
    assert isinstance(await hands.carry_out(claim), Completed)
    assert isinstance(await hands.carry_out(claim), Duplicate)
    assert isinstance(await hands.finish(claim), Duplicate)
    assert await hands.applied() == ["once"]
    [run] = await hands.runs()
    assert (run.id, run.from_outbox, UUID(run.id).version) == (job_id, False, 7)


async def test_an_id_that_is_queued_or_has_a_result_is_left_alone(hands: Hands) -> None:
    queue = Queue(hands.redis)
    assert await queue.enqueue(Play(text="first"), job_id="j") == "j"
    assert await queue.enqueue(Play(text="second"), job_id="j") is None
    await hands.work()
    assert await queue.enqueue(Play(text="third"), job_id="j") is None
    await hands.redis.delete("arq:result:j")
    assert await queue.enqueue(Play(text="fourth"), job_id="j") == "j"
    await hands.work()
    assert await hands.applied() == ["first", "fourth"]


async def test_messages_carry_no_ttl(broker: ArqRedis) -> None:
    job_id = await Queue(broker).enqueue(Play())
    assert await broker.ttl(f"arq:job:{job_id}") == -1


async def test_a_delay_counts_by_redis_s_clock(broker: ArqRedis) -> None:
    before, _ = await broker.time()
    job_id = await Queue(broker).enqueue(Play(), delay=AN_HOUR)
    after, _ = await broker.time()
    score = await broker.zscore("arq:queue", job_id or "")
    assert score
    assert (before + 3600) * 1000 <= score <= (after + 3601) * 1000


async def test_a_job_can_be_due_at_a_time(broker: ArqRedis) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    job_id = await Queue(broker).enqueue(Play(), at=at)
    assert await broker.zscore("arq:queue", job_id or "") == at.timestamp() * 1000


async def test_a_job_goes_where_its_class_says_unless_the_queue_has_a_name_of_its_own(broker: ArqRedis) -> None:
    await Queue(broker).enqueue(Slow())
    await Queue(broker).enqueue_many([Slow(), Play()])
    await Queue(broker, "other").enqueue(Slow())
    assert [await broker.zcard(name) for name in ("slow", "arq:queue", "other")] == [2, 1, 1]


async def test_many_are_sent_in_few_round_trips_and_their_ids_come_back_in_order(broker: ArqRedis) -> None:
    ids = await Queue(broker).enqueue_many(Play(text=str(number)) for number in range(1201))
    assert len(ids) == len(set(ids)) == 1201
    message = decode(await broker.get(f"arq:job:{ids[777]}") or b"")
    assert isinstance(message, Message)
    assert Play.from_payload(message.payload).text == "777"
    assert await broker.zcard("arq:queue") == 1201
    assert await Queue(broker).enqueue_many([]) == []


async def test_large_ones_are_sent_a_few_at_a_time(broker: ArqRedis) -> None:
    info = await broker.info("commandstats")
    before = info.get("cmdstat_evalsha", {"calls": 0})["calls"]
    await Queue(broker).enqueue_many(Wide(text="x" * 1_000_000) for _ in range(20))
    info = await broker.info("commandstats")
    assert info["cmdstat_evalsha"]["calls"] - before >= 3


async def test_any_client_of_redis_will_do(redis: Redis, redis_url: str) -> None:
    text_client = Redis.from_url(redis_url, decode_responses=True)
    assert await Queue(redis).enqueue(Play(), job_id="j") == "j"
    assert await Queue(text_client).enqueue(Play(), job_id="j") is None
    assert len(await Queue(text_client).enqueue_many([Play()])) == 1
    await text_client.aclose()


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"delay": timedelta(0), "at": datetime.now(UTC)}, "both delay and at"),
        ({"delay": 60}, "delay=60; give a timedelta"),
        ({"at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - what is refused
        ({"job_id": "with space"}, "the job_id 'with space'"),
        ({"job_id": 17}, "enqueue got job_id=17; give a text."),
        ({"at": "2030-01-31"}, "enqueue got at='2030-01-31'; give an aware datetime."),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_sentence(
    broker: ArqRedis, options: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(refusal)):
        await Queue(broker).enqueue(Play(), **options)
    no_job: Any = Play
    for refused in (Queue(broker).enqueue(no_job), Queue(broker).enqueue_many([no_job])):
        with pytest.raises(ValueError, match="enqueue got the class Play for a job; give an instance"):
            await refused
    with pytest.raises(ValueError, match="The queue is called 'with space'"):
        Queue(broker, "with space")
    with pytest.raises(ValueError, match="the limit is 1,048,576"):
        await Queue(broker).enqueue(Wide(text="x" * 1024 * 1024))
    assert await broker.zcard("arq:queue") == 0
