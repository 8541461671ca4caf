"""arq's abort: before a job begins, while it runs, and once it has ended."""

import asyncio
import json
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import SerializationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Effects, Work
from tests.consumer.jobs import PING, Gate, Ping, Pong, calling, leave_effect
from tests.support.waiting import wait_until
from worker.handler import Handler
from worker.outbox import enqueue
from worker.outcome import Cancelled, Completed
from worker.queue import Queue
from worker.wire import ABORT_SET


def job_of(arq: ArqRedis, job_id: str) -> ArqJob:
    return ArqJob(job_id, arq, _deserializer=arq.job_deserializer)


async def statuses(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT status FROM worker.run")))


async def test_a_job_that_waits_is_cancelled_before_it_begins_even_if_it_is_due_much_later(
    arq: ArqRedis, work: Work, engine: AsyncEngine, effects: Effects
) -> None:
    job = await arq.enqueue_job("ping", _defer_by=3600)
    assert job is not None
    aborted = asyncio.create_task(job.abort(timeout=10, poll_delay=0.02))
    async with work(PING) as worker:
        assert await worker.outcome(job.job_id) == Cancelled("aborted before it began")
        assert await aborted
    assert await effects() == []
    assert await statuses(engine) == ["cancelled"]
    assert await arq.zcard(ABORT_SET) == 0


async def test_a_running_job_is_cancelled_and_rolled_back_and_is_not_tried_again(
    arq: ArqRedis, work: Work, session: AsyncSession, engine: AsyncEngine, effects: Effects
) -> None:
    gate = Gate()
    job_id = enqueue(session, Ping())
    await session.commit()
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        assert await job_of(arq, job_id).abort(timeout=10, poll_delay=0.02)
        assert worker.of(job_id) == [Cancelled("aborted")]
    assert await effects() == []
    assert await statuses(engine) == ["cancelled"]
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM worker.outbox"))).scalar_one() == 0
    assert await arq.zcard(ABORT_SET) == 0


async def test_a_client_without_our_deserializer_gets_a_serialization_error_with_the_text(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="a")
    async with work(calling(gate)):
        await gate.reached.wait()
        with pytest.raises(SerializationError, match="CancelledError: aborted"):
            await ArqJob("a", arq, _deserializer=json_only).abort(timeout=10, poll_delay=0.02)


def json_only(raw: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(raw)
    return value


async def test_a_job_that_has_ended_is_not_aborted(arq: ArqRedis, work: Work, effects: Effects) -> None:
    async with work(PING) as worker:
        await Queue(arq).enqueue(Ping(), job_id="a")
        await worker.outcome("a")
        assert not await job_of(arq, "a").abort(timeout=10, poll_delay=0.02)
    assert await effects() == ["a"]
    await arq.delete(ABORT_SET)


async def test_others_run_on(arq: ArqRedis, work: Work, effects: Effects) -> None:
    gate, other = Gate(), Gate()
    await Queue(arq).enqueue(Ping(), job_id="aborted")
    await Queue(arq).enqueue(Pong(), job_id="other")

    async def pong(_job: Pong, session: AsyncSession) -> str:
        await leave_effect(session)
        return await other()

    async with work(calling(gate), Handler(Pong, pong)) as worker:
        await asyncio.gather(gate.reached.wait(), other.reached.wait())
        assert await job_of(arq, "aborted").abort(timeout=10, poll_delay=0.02)
        other.opened.set()
        assert await worker.outcome("other") == Completed("opened")
    assert await effects() == ["other"]


async def test_whatever_lies_in_the_abort_set_harms_nobody(arq: ArqRedis, work: Work, effects: Effects) -> None:
    await arq.zadd(ABORT_SET, {b"\xff\xfe": 1, b"unknown": 2})
    gate = Gate()
    await Queue(arq).enqueue(Ping(), job_id="a")
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        assert await job_of(arq, "a").abort(timeout=10, poll_delay=0.02)
        assert worker.faults == []
    assert await arq.zrange(ABORT_SET, 0, -1) == [b"\xff\xfe", b"unknown"]
    await arq.delete(ABORT_SET)


async def test_an_abort_that_came_too_late_is_none_of_the_next_job_of_its_id(
    arq: ArqRedis, work: Work, effects: Effects
) -> None:
    async with work(PING) as worker:
        await Queue(arq).enqueue(Ping(), job_id="a")
        assert isinstance(await worker.outcome("a"), Completed)
        assert not await job_of(arq, "a").abort(timeout=10, poll_delay=0.02)
        await arq.delete("arq:result:a")  # as after an hour
        await Queue(arq).enqueue(Ping(), job_id="a")

        async def are_two() -> bool:
            return len(worker.of("a")) == 2

        await wait_until(are_two)
    assert all(isinstance(outcome, Completed) for outcome in worker.of("a"))
    assert await effects() == ["a", "a"]
