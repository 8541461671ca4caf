"""Whoever may call `worker.enqueue` and do nothing else holds up nobody, and blinds nobody who looks on."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.outbox.hands import AN_HOUR, Hands, Play
from worker.claims import Claims
from worker.job import Job
from worker.limits import Gate, Limits
from worker.outcome import Completed
from worker.queue import Queue
from worker.queue_order import parse_order
from worker.status import status

PARKED, KEPT = "ratchet:parked:arq:queue", "ratchet:kept:test.play"
OURS = (PARKED, KEPT, "ratchet:permits:test.play")


async def enqueue_theirs(producer: AsyncConnection, queue: str) -> None:
    await producer.execute(text("select worker.enqueue('theirs', '{}', queue => :queue)"), {"queue": queue})
    await producer.commit()


async def insert_theirs(hands: Hands, queue: str) -> None:
    """As a producer in Python may, who has INSERT on the outbox, and so may a worker of an older deploy."""
    await hands.sql(
        "insert into worker.outbox (id, enqueued_ms, name, queue, message) values ('theirs', 1, 'theirs', :queue, '')",
        queue=queue,
    )


@pytest.mark.parametrize("queue", OURS)
async def test_a_key_of_the_runtime_is_no_queue(queue: str, producer: AsyncConnection, hands: Hands) -> None:
    with pytest.raises(DBAPIError, match="names that begin with ratchet: are the runtime's own"):
        await enqueue_theirs(producer, queue)
    with pytest.raises(ValueError, match="don't begin with ratchet:"):
        Queue(hands.redis, queue)
    with pytest.raises(ValueError, match="don't begin with ratchet:"):
        await hands.enqueue(Play(), queue=queue)
    with pytest.raises(ValueError, match="don't begin with ratchet:"):
        type("Theirs", (Job,), {}, name="theirs", queue=queue)
    with pytest.raises(ValueError, match="names of queues"):
        parse_order([queue])


@pytest.mark.parametrize("queue", OURS)
async def test_no_row_of_the_outbox_gets_into_one(queue: str, hands: Hands) -> None:
    await insert_theirs(hands, queue)
    await hands.enqueue(Play())
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
    assert await hands.redis.exists(queue) == 0


async def test_a_key_of_the_wrong_type_keeps_no_job_from_being_claimed(hands: Hands) -> None:
    await hands.redis.zadd(PARKED, {"theirs": 1})
    await hands.enqueue(Play())
    await hands.relay.drain()
    claims = Claims(hands.redis, AN_HOUR, Limits({"test.play": Gate("test.play", max_concurrent=1)}))
    assert len(await claims.take(["arq:queue"], 1, "me")) == 1


@pytest.mark.parametrize("queue", ["no-queue", PARKED])
async def test_status_is_told_whatever_a_row_names_for_its_queue(queue: str, hands: Hands) -> None:
    await hands.redis.set(queue, "of somebody else", ex=60)
    await insert_theirs(hands, queue)
    await hands.relay.drain()
    found = await status(hands.engine, hands.redis, queues=["arq:queue"], known=(), lease=AN_HOUR)
    assert [(each.name, each.waiting, each.unsent) for each in found.queues] == [("arq:queue", 0, 0), (queue, 0, 1)]
