"""PostgreSQL away, at start and in flight: nothing is claimed, nothing counts, it is said once, and all goes on."""

import asyncio
import socket
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Burst, Effects, Logged, Work
from tests.consumer.jobs import PING, Gate, Ping, calling
from tests.support.waiting import wait_until
from worker import database
from worker.dev import EmbeddedPostgres
from worker.outbox import enqueue
from worker.outcome import Completed, Released
from worker.queue import Queue


async def is_said(logged: Logged, event: str) -> None:
    async def there() -> bool:
        return any(line["event"] == event for line in logged)

    await wait_until(there)


async def test_at_the_start_nothing_is_claimed_until_it_is_there(
    arq: ArqRedis, postgres: EmbeddedPostgres, engine: AsyncEngine, work: Work, effects: Effects, logged: Logged
) -> None:
    await engine.dispose()
    postgres.stop()
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    due = await arq.zscore("arq:queue", job_id)
    async with work(PING) as worker:
        await is_said(logged, "database_away")
        assert await arq.keys("arq:in-progress:*") == []
        assert await arq.zscore("arq:queue", job_id) == due
        postgres.start()
        assert await worker.outcome(job_id) == Completed({"n": 0})
    assert worker.outcomes == [(job_id, Completed({"n": 0}))]
    assert [line["event"] for line in logged if "database" in str(line["event"])] == ["database_away", "database_back"]
    assert worker.faults == []
    assert await effects() == [job_id]


async def test_at_the_start_nothing_is_claimed_while_it_does_not_answer(
    arq: ArqRedis, work: Work, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing, so that only time tells that it is away."""
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 0.2)
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    due = await arq.zscore("arq:queue", job_id)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with work(PING, database_url=f"postgresql://ann@127.0.0.1:{port}/shop") as worker:
            await is_said(logged, "database_away")
            assert await arq.keys("arq:in-progress:*") == []
            assert await arq.zscore("arq:queue", job_id) == due
    assert worker.outcomes == []


async def test_a_crash_in_flight_burns_no_attempt_and_nothing_is_claimed_until_it_is_back(
    arq: ArqRedis,
    postgres: EmbeddedPostgres,
    engine: AsyncEngine,
    session: AsyncSession,
    work: Work,
    effects: Effects,
    logged: Logged,
) -> None:
    gate = Gate()
    job_id = enqueue(session, Ping())
    await session.commit()
    await session.close()
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        await engine.dispose()
        postgres.crash()
        gate.opened.set()
        assert await worker.outcome(job_id) == Released("PostgreSQL is away", timedelta(seconds=1))
        await is_said(logged, "database_away")
        direct = await Queue(arq).enqueue(Ping())
        assert direct is not None

        async def is_offered() -> bool:
            seconds, _ = await arq.time()
            due = await arq.zscore("arq:queue", job_id)
            return due is not None and due / 1000 < int(seconds)

        await wait_until(is_offered)
        assert await arq.keys("arq:in-progress:*") == []
        postgres.start()
        assert await worker.outcome(direct) == Completed("opened")

        async def is_done() -> bool:
            return Completed("opened") in worker.of(job_id)

        await wait_until(is_done)
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM worker.attempt"))).scalar_one() == 0
    assert worker.faults == []
    assert await effects() == sorted([job_id, direct])


async def test_a_signal_ends_a_worker_while_postgres_is_away(
    arq: ArqRedis, postgres: EmbeddedPostgres, engine: AsyncEngine, work: Work, effects: Effects, logged: Logged
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="running")
    async with work(calling(gate), shutdown_grace=0.1) as worker:
        await gate.reached.wait()
        await engine.dispose()
        postgres.stop()
        await is_said(logged, "database_away")
        worker.signal()
        async with asyncio.timeout(10):
            await worker.task
    assert worker.of("running") == [Released("the worker stops")]
    assert await arq.keys("arq:in-progress:*") == []
    assert await arq.zcard("arq:queue") == 1
    postgres.start()
    assert await effects() == []


async def test_a_burst_waits_for_it(
    arq: ArqRedis, postgres: EmbeddedPostgres, engine: AsyncEngine, session: AsyncSession, burst: Burst,
    effects: Effects, logged: Logged,
) -> None:  # fmt: skip
    job_id = enqueue(session, Ping())
    await session.commit()
    await session.close()
    await engine.dispose()
    postgres.stop()
    running = asyncio.create_task(burst(PING))
    await is_said(logged, "database_away")
    postgres.start()
    await running
    assert await effects() == [job_id]
