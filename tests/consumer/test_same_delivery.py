"""However often, wherever and whenever a job is delivered, it is applied once."""

from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.consumer.conftest import Burst, Effects, Work
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.support.waiting import wait_until
from worker.broker import connect_broker
from worker.outcome import Completed, Duplicate, Outcome
from worker.queue import Queue


async def test_two_workers_given_the_same_delivery_at_the_same_time_apply_it_once(
    arq: ArqRedis, redis_url: str, work: Work, engine: AsyncEngine, effects: Effects
) -> None:
    """Each has a lease of its own: two databases of Redis hold the same message."""
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="same")
    copy = connect_broker(f"{redis_url}/1")
    await copy.set("arq:job:same", await arq.get("arq:job:same"))
    async with work(calling(gate)) as first, work(calling(gate), redis_url=f"{redis_url}/1") as second:
        await gate.reached.wait()
        await copy.zadd("arq:queue", {"same": 1})

        async def is_waiting() -> bool:
            async with engine.connect() as connection:
                waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                return bool((await connection.execute(waiting)).scalar_one())

        await wait_until(is_waiting)
        gate.opened.set()
        outcomes = [await worker.outcome("same") for worker in (first, second)]
    await copy.aclose()
    assert sorted(map(repr, outcomes)) == sorted(map(repr, [Completed("opened"), Duplicate("opened")]))
    assert await effects() == ["same"]


async def test_a_direct_job_is_applied_once_however_often_it_is_delivered(
    arq: ArqRedis, burst: Burst, effects: Effects
) -> None:
    await Queue(arq).enqueue(Ping(n=1), job_id="again")
    message = await arq.get("arq:job:again")
    outcomes: list[Outcome] = []
    for _ in range(3):
        outcomes += (await burst(PING)).of("again")
        await arq.set("arq:job:again", message)
        await arq.zadd("arq:queue", {"again": 1})
    assert outcomes == [Completed({"n": 1}), Duplicate({"n": 1}), Duplicate({"n": 1})]
    assert await effects() == ["again"]


async def test_the_same_id_enqueued_at_another_time_is_another_job(
    arq: ArqRedis, burst: Burst, effects: Effects
) -> None:
    for n in (1, 2):
        await arq.set("arq:job:id", b'{"t":null,"f":"ping","a":[],"k":{"n":%d},"et":%d}' % (n, n))
        await arq.zadd("arq:queue", {"id": 1})
        assert (await burst(PING)).of("id") == [Completed({"n": n})]
    assert await effects() == ["id", "id"]
