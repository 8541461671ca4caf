"""The wire: stock arq, not our client, enqueues jobs and reads what became of them."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus, SerializationError
from arq.worker import async_check_health
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Burst, Effects, Work
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.guide.test_01_enqueue import plain_arq
from tests.support.waiting import wait_until
from worker import runtime
from worker.errors import Permanent
from worker.outbox import enqueue
from worker.outcome import Completed, Dead
from worker.wire import JobFailed, deserialize


def to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def from_json(raw: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(raw)
    return value


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    """Give arq's client as somebody else would make it, with a JSON serializer of his own."""
    settings = RedisSettings.from_dsn(redis_url)
    client = await create_pool(settings, job_serializer=to_json, job_deserializer=from_json)
    yield client
    await client.aclose()


async def test_it_enqueues_a_job_and_reads_its_status_and_its_result(
    stock: ArqRedis, work: Work, effects: Effects
) -> None:
    gate = Gate()
    later = await stock.enqueue_job("ping", n=1, _defer_by=3600)
    job = await stock.enqueue_job("ping", n=2)
    assert job is not None
    assert later is not None
    assert await job.status() == JobStatus.queued
    async with work(calling(gate)):
        await gate.reached.wait()
        assert await job.status() == JobStatus.in_progress
        assert await later.status() == JobStatus.deferred
        gate.opened.set()
        assert await job.result(timeout=10, poll_delay=0.02) == "opened"
        assert await job.status() == JobStatus.complete
    assert await effects() == [job.job_id]
    assert await ArqJob("never", stock, _deserializer=from_json).status() == JobStatus.not_found


async def test_the_client_that_the_guide_shows_reads_results(redis_url: str, burst: Burst, effects: Effects) -> None:
    client = await plain_arq(redis_url)
    job = await client.enqueue_job("ping", n=2)
    assert job is not None
    await burst(PING)
    assert await job.result() == {"n": 2}
    await client.aclose()


async def test_its_info_tells_of_a_job_that_waits_and_of_one_that_has_ended(
    stock: ArqRedis, burst: Burst, effects: Effects
) -> None:
    job = await stock.enqueue_job("ping", n=2)
    assert job is not None
    waiting = await job.info()
    assert waiting is not None
    assert (waiting.function, waiting.kwargs, waiting.score) == (
        "ping",
        {"n": 2},
        waiting.enqueue_time.timestamp() * 1000,
    )
    await burst(PING)
    ended = await job.result_info()
    assert ended is not None
    assert (ended.function, list(ended.args), ended.kwargs, ended.job_try) == ("ping", [], {"n": 2}, 1)
    assert (ended.success, ended.result, ended.queue_name, ended.job_id) == (True, {"n": 2}, "arq:queue", job.job_id)
    assert ended.enqueue_time == waiting.enqueue_time
    assert ended.enqueue_time <= ended.start_time <= ended.finish_time
    assert [result.job_id for result in await stock.all_job_results()] == [job.job_id]


async def test_it_reads_of_jobs_that_came_through_the_outbox(
    stock: ArqRedis, burst: Burst, session: AsyncSession, effects: Effects
) -> None:
    job_id = enqueue(session, Ping(n=3))
    await session.commit()
    await burst(PING)
    assert await ArqJob(job_id, stock, _deserializer=from_json).result() == {"n": 3}


async def test_a_failed_result_is_false_and_a_text_which_our_deserializer_makes_an_error(
    stock: ArqRedis, burst: Burst, effects: Effects
) -> None:
    def fail() -> None:
        raise Permanent("no such thing")

    job = await stock.enqueue_job("ping")
    assert job is not None
    await burst(calling(fail))
    told = await job.result_info()
    assert told is not None
    assert (told.success, told.result) == (False, "Permanent: no such thing")
    with pytest.raises(SerializationError, match=r"^Permanent: no such thing$"):
        await job.result()
    with pytest.raises(JobFailed, match=r"^Permanent: no such thing$"):
        await ArqJob(job.job_id, stock, _deserializer=deserialize).result()


async def test_an_id_that_is_queued_or_has_a_result_is_refused_and_is_free_again_with_its_result(
    stock: ArqRedis, burst: Burst, effects: Effects
) -> None:
    assert await stock.enqueue_job("ping", _job_id="mine")
    assert await stock.enqueue_job("ping", _job_id="mine") is None
    await burst(PING)
    assert await stock.enqueue_job("ping", _job_id="mine") is None
    await stock.delete("arq:result:mine")
    assert await stock.enqueue_job("ping", _job_id="mine")
    assert (await burst(PING)).of("mine") == [Completed({"n": 0})]
    assert await effects() == ["mine", "mine"]


async def test_a_pickle_is_dead_its_bytes_are_kept_and_it_is_never_loaded(
    stock: ArqRedis, redis_url: str, burst: Burst, engine: AsyncEngine
) -> None:
    pickling = await create_pool(RedisSettings.from_dsn(redis_url))
    job = await pickling.enqueue_job("ping", n=Trap())
    assert job is not None
    raw = await stock.get(f"arq:job:{job.job_id}")
    await pickling.aclose()
    [dead] = (await burst(PING)).of(job.job_id)
    assert isinstance(dead, Dead)
    assert "JSON" in dead.error
    async with engine.connect() as connection:
        kept = (await connection.execute(text("SELECT status, message FROM worker.run"))).one()
    assert tuple(kept) == ("dead", raw)


class Trap:
    """Its pickle fails the test when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle was loaded",))


async def test_a_message_of_any_kind_ends_and_is_kept(stock: ArqRedis, burst: Burst, engine: AsyncEngine) -> None:
    messages = {
        "empty": b"",
        "list": b"[1]",
        "no name": b'{"a":[],"k":{},"et":1}',
        "positional": b'{"f":"ping","a":[1],"k":{},"et":1}',
        "no et": b'{"f":"ping","a":[],"k":{}}',
        "huge": b'{"f":"ping","a":[],"k":{"n":1,"x":"%b"},"et":1}' % (b"x" * 5_000_000),
        "wrong": b'{"f":"ping","a":[],"k":{"n":"many"},"et":1}',
        "deep": b'{"f":"ping","a":[],"k":{"n":' + b"[" * 100_000 + b'},"et":1}',
    }
    for job_id, message in messages.items():
        await stock.set(f"arq:job:{job_id}", message)
        await stock.zadd("arq:queue", {job_id: 1})
    told = await burst(PING)
    assert {job_id: type(outcome) for job_id, outcome in told.outcomes} == dict.fromkeys(messages, Dead)
    assert told.faults == []
    async with engine.connect() as connection:
        kept = (await connection.execute(text("SELECT id, message FROM worker.run WHERE status = 'dead'"))).all()
    assert dict(map(tuple, kept)) == messages


@pytest.mark.parametrize("raw_id", [b"\xff\xfe", b"nul\0", b"x" * 10_000], ids=["no UTF-8", "NUL", "long"])
async def test_a_job_with_any_id_at_all_is_applied_once(
    stock: ArqRedis, burst: Burst, effects: Effects, raw_id: bytes
) -> None:
    message = b'{"t":null,"f":"ping","a":[],"k":{"n":1},"et":1}'
    for _ in range(2):
        await stock.set(b"arq:job:" + raw_id, message)
        await stock.zadd("arq:queue", {raw_id: 1})
        told = await burst(PING)
        assert told.faults == []
        assert await stock.zcard("arq:queue") == 0
        assert from_json(await stock.get(b"arq:result:" + raw_id))["r"] == {"n": 1}
    assert len(await effects()) == 1
    await stock.delete(b"arq:result:" + raw_id)


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # arq's own check does
async def test_the_health_check_reads_as_arqs_own_for_each_queue(
    stock: ArqRedis, redis_url: str, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "BEAT_EVERY_S", 0.1)
    settings = RedisSettings.from_dsn(redis_url)
    assert await async_check_health(settings, queue_name="a") == 1
    await stock.enqueue_job("ping", n=1, _queue_name="a")
    await stock.enqueue_job("ping", n=2, _queue_name="b")
    await stock.enqueue_job("ping", n="many", _queue_name="a")
    await stock.enqueue_job("ping", _queue_name="b", _defer_by=3600)
    async with work(PING, queues=("a", "b")):

        async def has_counted() -> bool:
            a, b = await stock.mget("a:health-check", "b:health-check")  # written one after the other
            counted = b"j_complete=2 j_failed=1 j_retried=0 j_ongoing=0"
            return counted + b" queued=0" in (a or b"") and counted + b" queued=1" in (b or b"")

        await wait_until(has_counted)
        assert await async_check_health(settings, queue_name="a") == 0
        assert await async_check_health(settings, queue_name="b") == 0
        assert re.fullmatch(rb"\w{3}-\d\d \d\d:\d\d:\d\d j_complete=.* queued=0", await stock.get("a:health-check"))
        assert 0 < await stock.pttl("a:health-check") <= 1100
    assert len(await effects()) == 2
