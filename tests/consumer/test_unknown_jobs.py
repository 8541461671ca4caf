"""An unknown job stays queued and is offered again later, with one warning a name."""

from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.conftest import Burst, Effects, Work
from tests.consumer.jobs import PING, Ping, Pong, leave_effect
from tests.support.waiting import wait_until
from worker import executor
from worker.errors import UnknownJob
from worker.handler import Handler
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.queue import Queue


async def pong(_job: Pong, session: AsyncSession) -> None:
    await leave_effect(session)


async def test_it_is_offered_again_in_some_seconds_with_its_message_untouched(arq: ArqRedis, burst: Burst) -> None:
    job_id = await Queue(arq).enqueue(Pong(n=1))
    assert job_id is not None
    message = await arq.get(f"arq:job:{job_id}")
    told = await burst(PING)
    seconds, _ = await arq.time()
    due = await arq.zscore("arq:queue", job_id)
    assert due is not None
    assert 0 < due - 1000 * int(seconds) <= 7000
    assert await arq.get(f"arq:job:{job_id}") == message
    assert await arq.keys("arq:in-progress:*") + await arq.keys("arq:retry:*") + await arq.keys("arq:result:*") == []
    assert [str(error) for _, error in told.faults] == [str(UnknownJob("pong"))]


async def test_a_worker_that_knows_it_does_it_and_one_that_does_not_warns_once_a_name(
    arq: ArqRedis, work: Work, session: AsyncSession, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OFFER_AGAIN", timedelta(milliseconds=50))
    job_ids = [enqueue(session, Pong(n=n)) for n in range(3)]
    await session.commit()
    async with work(PING) as old:

        async def has_met_them() -> bool:
            return await arq.zcard("arq:queue") == 3 and len(old.faults) > 0

        await wait_until(has_met_them)
        async with work(Handler(Pong, pong)) as new:
            for job_id in job_ids:
                assert isinstance(await new.outcome(job_id), Completed)
        assert len(old.faults) == 1
        assert old.outcomes == []
    assert await effects() == sorted(job_ids)


async def test_a_known_job_behind_unknown_ones_is_not_held_up(arq: ArqRedis, burst: Burst, effects: Effects) -> None:
    await Queue(arq).enqueue_many(Pong(n=n) for n in range(30))
    job_id = await Queue(arq).enqueue(Ping())
    told = await burst(PING, concurrency=1)
    assert [known for known, _ in told.outcomes] == [job_id]
    assert await arq.zcard("arq:queue") == 30
