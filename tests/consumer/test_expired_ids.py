"""An id without a payload is left to the sweep if PostgreSQL knows its job, else finished as arq does."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from sqlalchemy.ext.asyncio import AsyncSession

from tests.consumer.conftest import Burst, Effects, Work
from tests.consumer.jobs import PING, Ping, calling
from tests.support.waiting import wait_until
from worker.claims import Claims
from worker.endings import Finish, PutBack
from worker.errors import Snooze
from worker.outbox import enqueue
from worker.outcome import Completed
from worker.queue import Queue
from worker.wire import JobFailed


async def test_an_id_that_nobody_knows_is_finished_as_arq_does(arq: ArqRedis, burst: Burst) -> None:
    await arq.zadd("arq:queue", {"gone": 1})
    await burst(PING)
    with pytest.raises(JobFailed, match="job expired"):
        await ArqJob("gone", arq, _deserializer=arq.job_deserializer).result()
    assert await arq.zcard("arq:queue") == 0


async def test_an_id_that_has_an_outbox_row_waits_for_the_sweep_which_sends_it_again(
    arq: ArqRedis, work: Work, session: AsyncSession, effects: Effects
) -> None:
    job_id = enqueue(session, Ping(), delay=timedelta(seconds=0.5))
    await session.commit()
    async with work(PING, sweep_interval=0.2) as worker:

        async def is_sent() -> bool:
            return bool(await arq.exists(f"arq:job:{job_id}"))

        await wait_until(is_sent)
        await arq.delete(f"arq:job:{job_id}")
        assert await worker.outcome(job_id) == Completed({"n": 0})
    assert await effects() == [job_id]


async def test_an_id_that_has_an_unfinished_run_is_left_in_the_queue(
    arq: ArqRedis, burst: Burst, session: AsyncSession, effects: Effects
) -> None:
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None

    def snooze() -> None:
        raise Snooze(timedelta(hours=1))

    await burst(calling(snooze))
    await arq.delete(f"arq:job:{job_id}")
    await arq.zadd("arq:queue", {job_id: 1})
    await burst(PING)
    assert await arq.exists(f"arq:result:{job_id}") == 0
    assert await arq.zscore("arq:queue", job_id) is not None


async def test_a_job_that_gets_the_id_meanwhile_is_not_taken_for_the_expired_one(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enqueued after the claim, and before the answer to Redis."""
    settle = Claims.settle

    async def later(self: Claims, endings: Sequence[Finish | PutBack]) -> list[bool]:
        if any(isinstance(ending, Finish) for ending in endings) and expired.pop():
            assert await arq.enqueue_job("ping", _job_id="again", n=5)
        return await settle(self, endings)

    expired = [False, True]
    monkeypatch.setattr(Claims, "settle", later)
    await arq.zadd("arq:queue", {"again": 1})
    async with work(PING) as worker:
        assert await worker.outcome("again", count=2) == Completed({"n": 5})
    assert await effects() == ["again"]
