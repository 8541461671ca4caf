"""Each call of a handler gets the job as it was enqueued, whatever an earlier call did to its lists and dicts."""

from collections.abc import Sequence

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, effect
from tests.runtime.test_batches import LONG
from worker.chunk import Chunk, Step
from worker.errors import Permanent
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.outcome import Completed, Dead


class Payout(Job, name="payout"):
    """Frozen, but its list is a list."""

    to: list[str]


async def pay(job: Payout, session: AsyncSession) -> int:
    """Work the list off, as one may."""
    paid = 0
    while job.to:
        await effect(session, job.to.pop())
        paid += 1
    return paid


@pytest.mark.parametrize("direct", [True, False])
async def test_after_a_conflict(bench: Bench, *, direct: bool) -> None:
    calls: list[int] = []

    async def losing_once(job: Payout, session: AsyncSession) -> int:
        paid = await pay(job, session)
        calls.append(paid)
        if len(calls) == 1:
            raise asyncpg.SerializationError
        return paid

    job = Payout(to=["ada", "bob"])
    delivery = bench.direct(job) if direct else await bench.enqueued(job)
    assert await bench.run(Handler(Payout, losing_once), delivery) == Completed(2)
    assert sorted(await bench.effects()) == ["ada", "bob"]


async def test_after_a_batch_was_halved(bench: Bench) -> None:
    async def pay_all(jobs: Sequence[Payout], session: AsyncSession) -> list[int]:
        paid = [await pay(job, session) for job in jobs]
        if 0 in paid:
            raise Permanent("nobody is to be paid")
        return paid

    handler = BatchHandler(Payout, pay_all, max_size=4, linger=LONG)
    deliveries = [await bench.enqueued(Payout(to=to)) for to in (["ada"], ["bob"], [], ["cid", "dan"])]
    outcomes = await bench.run_all(handler, deliveries)
    assert [outcomes[number] for number in (0, 1, 3)] == [Completed(1), Completed(1), Completed(2)]
    assert isinstance(outcomes[2], Dead)
    assert sorted(await bench.effects()) == ["ada", "bob", "cid", "dan"]


async def test_in_each_chunk(bench: Bench) -> None:
    """Also where no failure came between: the next worker's first chunk sees the whole job, so all of them do."""
    seen: list[list[str]] = []

    async def pay_one(job: Payout, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        seen.append([*job.to])
        at = chunk.cursor or 0
        await effect(session, job.to.pop(at))
        return chunk.step(at + 1 if at < 2 else None, done=1)

    delivery = await bench.enqueued(Payout(to=["ada", "bob", "cid"]))
    assert isinstance(await bench.run(ChunkedHandler(Payout, pay_one, cursor=int), delivery), Completed)
    assert seen == [["ada", "bob", "cid"]] * 3
    assert await bench.effects() == ["ada", "bob", "cid"]
