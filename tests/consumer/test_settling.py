"""A living worker always gives an outcome or releases, and only the token's holder tells Redis."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.consumer.conftest import Burst, Effects, Work
from tests.consumer.jobs import PING, Gate, Ping, calling, leave_effect
from tests.support.waiting import wait_until
from worker import acknowledgements
from worker.chunk import Chunk, Step
from worker.claim import Claim
from worker.claims import Claims
from worker.delivery import Delivery, Kept, Report
from worker.endings import Finish, PutBack
from worker.errors import Cancel, Permanent, Snooze
from worker.executor import Executor
from worker.handler import ChunkedHandler, Handler
from worker.outbox import enqueue
from worker.outcome import Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.partitions import CARRY_ON, LOOK_AGAIN
from worker.queue import Queue
from worker.relay import Relay
from worker.retry import RetryPolicy
from worker.settle import ending

HOUR = timedelta(hours=1)


def raising(error: Exception, **policy: Any) -> Any:
    def fail() -> NoReturn:
        raise error

    return calling(fail, **policy)


async def result_of(redis: Redis, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await redis.get(f"arq:result:{job_id}"))
    return found


async def test_completed_takes_the_job_out_of_redis_and_keeps_its_result_for_an_hour(
    arq: ArqRedis, burst: Burst, effects: Effects
) -> None:
    job_id = await Queue(arq).enqueue(Ping(n=7))
    assert job_id is not None
    await burst(PING)
    assert sorted(await arq.keys("arq:*")) == [b"arq:queue:health-check", f"arq:result:{job_id}".encode()]
    assert 3_500_000 < await arq.pttl(f"arq:result:{job_id}") <= 3_600_000
    told = await result_of(arq, job_id)
    assert {name: told[name] for name in "fakrstq" if name in told} == {
        "f": "ping", "a": [], "k": {"n": 7}, "r": {"n": 7}, "s": True, "t": 1, "q": "arq:queue",
    }  # fmt: skip
    assert await effects() == [job_id]


async def test_no_result_is_kept_where_settings_say_so(arq: ArqRedis, burst: Burst, effects: Effects) -> None:
    await Queue(arq).enqueue(Ping())
    await burst(PING, keep_result=0)
    assert await arq.keys("arq:result:*") == []
    assert len(await effects()) == 1


async def test_a_duplicate_is_acknowledged_and_its_result_is_written_again(
    arq: ArqRedis, burst: Burst, effects: Effects
) -> None:
    job_id = await Queue(arq).enqueue(Ping(n=7))
    assert job_id is not None
    message = await arq.get(f"arq:job:{job_id}")
    await burst(PING)
    await arq.delete(f"arq:result:{job_id}")
    await arq.set(f"arq:job:{job_id}", message)
    await arq.zadd("arq:queue", {job_id: 1})
    told = await burst(PING)
    assert told.of(job_id) == [Duplicate({"n": 7})]
    assert (await result_of(arq, job_id))["r"] == {"n": 7}
    assert await arq.zcard("arq:queue") == 0
    assert await effects() == [job_id]


async def test_dead_is_acknowledged_with_its_error(arq: ArqRedis, burst: Burst, effects: Effects) -> None:
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    await burst(raising(Permanent("no such thing")))
    told = await result_of(arq, job_id)
    assert (told["s"], told["r"]) == (False, "Permanent: no such thing")
    assert await arq.keys("arq:job:*") == []
    assert await effects() == []


async def test_cancelled_is_acknowledged_with_its_reason(arq: ArqRedis, burst: Burst, effects: Effects) -> None:
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    await burst(raising(Cancel("never mind")))
    told = await result_of(arq, job_id)
    assert (told["s"], told["r"]) == (False, "CancelledError: never mind")


@pytest.mark.parametrize("error", [Snooze(HOUR), ValueError("no")])
async def test_snoozed_and_retrying_wait_in_redis_with_the_message_adopted_by_the_outbox(
    arq: ArqRedis, burst: Burst, engine: AsyncEngine, effects: Effects, error: Exception
) -> None:
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    retry = RetryPolicy(base=HOUR)
    told = await burst(raising(error, retry=retry))
    [outcome] = told.of(job_id)
    assert isinstance(outcome, Snoozed | Retrying)
    assert json.loads(await arq.get(f"arq:job:{job_id}"))["o"] == 1
    assert await arq.exists(f"arq:in-progress:{job_id}") == 0
    seconds, _ = await arq.time()
    due = await arq.zscore("arq:queue", job_id)
    assert due is not None
    assert abs(due / 1000 - int(seconds) - outcome.delay.total_seconds()) < 10
    assert await arq.get(f"arq:retry:{job_id}") == (b"1" if isinstance(outcome, Retrying) else None)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT id FROM worker.outbox"))).scalars().all() == [job_id]
    assert await effects() == []


async def test_yielded_is_put_back_at_its_old_place(arq: ArqRedis, work: Work) -> None:
    gate = Gate()

    async def count(job: Ping, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        await gate()
        return chunk.step((chunk.cursor or 0) + 1)

    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    due = await arq.zscore("arq:queue", job_id)
    async with work(ChunkedHandler(Ping, count, cursor=int)) as worker:
        await gate.reached.wait()
        worker.signal()
        gate.opened.set()
        await worker.task
    assert worker.of(job_id) == [Yielded()]
    assert await arq.zscore("arq:queue", job_id) == due
    assert await arq.exists(f"arq:in-progress:{job_id}") == 0


async def test_released_is_put_back_at_its_old_place_with_nothing_counted(
    arq: ArqRedis, work: Work, engine: AsyncEngine, effects: Effects
) -> None:
    gate = Gate()
    job_id = await Queue(arq).enqueue(Ping())
    assert job_id is not None
    due, message = await arq.zscore("arq:queue", job_id), await arq.get(f"arq:job:{job_id}")
    async with work(calling(gate), shutdown_grace=0) as worker:
        await gate.reached.wait()
        await worker.stop()
    assert worker.of(job_id) == [Released("the worker stops")]
    assert await arq.zscore("arq:queue", job_id) == due
    assert await arq.get(f"arq:job:{job_id}") == message
    assert await arq.keys("arq:in-progress:*") + await arq.keys("arq:retry:*") == []
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM worker.run"))).scalar_one() == 0
    assert await effects() == []


@pytest.mark.parametrize("outcome", [Completed(), Dead("E: no"), Retrying(HOUR, "E: no"), Released("busy")])
async def test_who_has_lost_the_lease_tells_redis_nothing(redis: Redis, outcome: Outcome) -> None:
    claims = Claims(redis, timedelta(seconds=15))
    await redis.set("arq:job:a", "{}")
    await redis.zadd("arq:queue", {"a": 1})
    [claim] = await claims.take(["arq:queue"], 1, "me")
    await redis.set("arq:in-progress:a", "another's")
    before = await everything(redis)
    told = ending(claim, Report(outcome, adopted=b"adopted"), HOUR)
    assert await claims.settle([told]) == [False]
    assert await everything(redis) == before
    await redis.delete("arq:in-progress:a")
    assert await claims.settle([told]) == [False]
    assert await redis.get("arq:job:a") == b"{}"
    assert await redis.exists("arq:in-progress:a", "arq:result:a", "arq:retry:a") == 0


async def test_a_result_may_be_encoded_elsewhere_and_an_id_may_stay_in_progress(redis: Redis) -> None:
    """As plain arq functions need it: any serializer, results for ever, and cron jobs that no late clock runs again."""
    claims = Claims(redis, timedelta(seconds=15))
    kept = {"ever": Kept(b"1", None), "hour": Kept(b"\0 2", HOUR), "no": Kept(b"3", timedelta(0)), "again": None}
    for job_id in kept:
        await redis.set(f"arq:job:{job_id}", "{}")
        await redis.zadd("arq:queue", {job_id: 1})
    taken = {claim.job_id: claim for claim in await claims.take(["arq:queue"], 4, "me")}
    told = [
        ending(taken[job_id], Report(Completed(), kept=kept[job_id], stays=HOUR), HOUR) for job_id in ("ever", "hour")
    ]
    told.append(ending(taken["no"], Report(Completed(), kept=kept["no"]), HOUR))
    told.append(ending(taken["again"], Report(Retrying(timedelta(0), "Retry"), attempt=1, stays=HOUR), HOUR))
    assert await claims.settle(told) == [True] * 4
    assert await redis.mget("arq:result:ever", "arq:result:hour", "arq:result:no") == [b"1", b"\0 2", None]
    assert await redis.ttl("arq:result:ever") == -1
    assert 0 < await redis.ttl("arq:result:hour") <= 3600
    assert await redis.exists("arq:in-progress:no") == 0
    for job_id in ("ever", "hour", "again"):
        assert 15 < await redis.ttl(f"arq:in-progress:{job_id}") <= 3600
    assert await redis.zrange("arq:queue", 0, -1, withscores=True) == [(b"again", 1)]
    assert await claims.take(["arq:queue"], 1, "me") == []
    await redis.delete("arq:result:ever")


async def everything(redis: Redis) -> dict[bytes, bytes | None]:
    return {key: await redis.dump(key) for key in await redis.keys("*")}


async def test_the_relay_is_told_of_each_job_that_has_left_redis_since_another_of_its_id_may_wait_for_that(
    arq: ArqRedis, burst: Burst, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def acknowledged(_relay: Relay, job_id: str) -> None:
        told.append(job_id)

    async def run(job: Ping, session: AsyncSession) -> None:
        errors = {1: Permanent("no"), 2: Cancel(), 3: ValueError("no"), 4: Snooze(HOUR)}
        if job.n in errors:
            raise errors[job.n]

    monkeypatch.setattr(Relay, "acknowledged", acknowledged)
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(5))
    await burst(Handler(Ping, run, retry=RetryPolicy(base=HOUR)))
    assert sorted(told) == sorted(ids[:3])


async def test_a_slot_that_becomes_free_is_filled_at_once(arq: ArqRedis, work: Work, effects: Effects) -> None:
    """No poll is near: only the end of a job can have woken the worker."""
    ids = await Queue(arq).enqueue_many(Ping(n=n) for n in range(10))
    async with work(PING, concurrency=2, poll_delay=60) as worker:
        for job_id in ids:
            await worker.outcome(job_id)
    assert await effects() == sorted(ids)


async def test_what_the_relay_sends_is_taken_at_once(work: Work, session: AsyncSession, effects: Effects) -> None:
    """No poll is near, the worker's nor the relay's: NOTIFY wakes the relay, and the relay the worker."""
    async with work(PING, poll_delay=60, relay_poll=60) as worker:
        for _ in range(3):
            job_id = enqueue(session, Ping())
            await session.commit()
            await worker.outcome(job_id)
    assert len(await effects()) == 3


async def test_jobs_wait_in_redis_never_in_the_worker(arq: ArqRedis, work: Work, effects: Effects) -> None:
    gate = Gate()
    await Queue(arq).enqueue_many(Ping(n=n) for n in range(10))
    async with work(calling(gate), concurrency=2) as worker:

        async def are_begun() -> bool:
            return len(worker.begun) == 2

        await wait_until(are_begun)
        assert len(await arq.keys("arq:in-progress:*")) == 2
        gate.opened.set()

        async def are_done() -> bool:
            return len(worker.outcomes) == 10

        await wait_until(are_done)
    assert len(await effects()) == 10


async def test_queues_are_served_in_the_order_in_which_they_are_named(
    arq: ArqRedis, burst: Burst, effects: Effects
) -> None:
    late = [await Queue(arq, "late").enqueue(Ping()) for _ in range(3)]
    early = [await Queue(arq, "early").enqueue(Ping()) for _ in range(3)]
    told = await burst(PING, queues=("early", "late"), concurrency=1)
    assert [job_id for job_id, _ in told.outcomes] == early + late


async def test_a_fault_of_the_runtime_puts_the_job_back_and_the_worker_goes_on(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Executor.execute

    async def broken(self: Executor, delivery: Delivery) -> Report:
        if delivery.job_id == "bad":
            raise KeyError("a bug")
        return await execute(self, delivery)

    monkeypatch.setattr(Executor, "execute", broken)
    async with work(PING, concurrency=1) as worker:
        await Queue(arq).enqueue(Ping(), job_id="bad")
        await Queue(arq).enqueue(Ping(), job_id="good")
        await worker.outcome("good")
        assert [(part, repr(error)) for part, error in worker.faults] == [("consumer", "KeyError('a bug')")]
        assert await arq.exists("arq:in-progress:bad") == 0
        assert await arq.zscore("arq:queue", "bad") is not None
        await arq.delete("arq:job:bad")
        await arq.zrem("arq:queue", "bad")
    assert await effects() == ["good"]


async def test_a_fault_of_an_acknowledgement_is_told_and_keeps_no_other_from_redis(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, failures = Claims.settle, iter([ValueError("a bug")])

    async def broken(self: Claims, endings: Sequence[Finish | PutBack]) -> list[bool]:
        if endings and (failure := next(failures, None)):
            raise failure
        return await settle(self, endings)

    monkeypatch.setattr(Claims, "settle", broken)
    async with work(PING, concurrency=1) as worker:
        first = await Queue(arq).enqueue(Ping()) or ""
        assert isinstance(await worker.outcome(first), Completed)
        second = await Queue(arq).enqueue(Ping()) or ""
        assert isinstance(await worker.outcome(second), Completed)
        # Its lease runs out, and it comes again.
        assert isinstance(await worker.outcome(first, count=2), Duplicate)
        assert [(part, repr(error)) for part, error in worker.faults] == [("consumer", "ValueError('a bug')")]
    assert await effects() == [first, second]
    assert await arq.zcard("arq:queue") == 0


async def test_an_ending_that_can_t_be_told_keeps_no_other_from_redis(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(claim: Claim, report: Report, keep: timedelta) -> Finish | PutBack:
        if claim.job_id == "bad":
            raise ValueError("it can't be encoded")
        return ending(claim, report, keep)

    monkeypatch.setattr(acknowledgements, "ending", broken)
    gate = Gate()
    for job_id in "bad", "good":
        await Queue(arq).enqueue(Ping(), job_id=job_id)
    async with work(calling(gate)) as worker:
        await gate.reached.wait()
        gate.opened.set()
        await worker.outcome("bad")
        await worker.outcome("good")

        async def is_gone() -> bool:
            return await arq.zscore("arq:queue", "good") is None

        await wait_until(is_gone)
        assert [(part, repr(error)) for part, error in worker.faults] == [
            ("consumer", 'ValueError("it can\'t be encoded")')
        ]
    assert await arq.zscore("arq:queue", "bad") is not None
    await arq.flushall()


async def test_a_fault_of_the_look_itself_does_not_end_the_worker(
    arq: ArqRedis, work: Work, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failures = Claims.take, iter([ValueError("a bug")])

    async def broken(self: Claims, *given: Any) -> list[Claim]:
        for error in failures:
            raise error
        return await take(self, *given)

    monkeypatch.setattr(Claims, "take", broken)
    async with work(PING) as worker:
        await Queue(arq).enqueue(Ping(), job_id="good")
        await worker.outcome("good")
    assert [repr(error) for _, error in worker.faults] == ["ValueError('a bug')"]
    assert await effects() == ["good"]


class Odd(BaseException):
    """Not an Exception, and yet no reason for a worker to end."""


async def test_whatever_a_handler_raises_the_worker_goes_on(arq: ArqRedis, work: Work, effects: Effects) -> None:
    errors: dict[int, BaseException] = {1: SystemExit(3), 2: Odd(), 3: asyncio.CancelledError(), 4: RecursionError()}

    async def fail(job: Ping, session: AsyncSession) -> None:
        if job.n in errors:
            raise errors[job.n]
        await leave_effect(session)

    async with work(Handler(Ping, fail, retry=RetryPolicy(attempts=1)), concurrency=1) as worker:
        for n in (1, 2, 3, 4, 5):
            await Queue(arq).enqueue(Ping(n=n), job_id=f"job-{n}")
        await worker.outcome("job-5")
        assert not worker.task.done()
        await worker.stop()
        assert await arq.keys("arq:in-progress:*") == []
        await arq.flushall()
    assert await effects() == ["job-5"]


@pytest.mark.parametrize(
    ("outcome", "cleared"),
    [
        (Yielded(), True),
        (Yielded(timedelta(0), "others have their turn"), True),
        (Yielded(HOUR, "a standby is 20 s behind", has_committed=False), False),
        (Released("the worker stops"), False),
        (Released(CARRY_ON, LOOK_AGAIN, clears=True), True),
    ],
)
def test_a_suspect_that_has_committed_or_waits_for_others_is_none_any_more(outcome: Outcome, *, cleared: bool) -> None:
    claim = Claim("a", b"a", "arq:queue", "token", b"{}", 1, 1, 0, aborted=False)
    told = ending(claim, Report(outcome), HOUR)
    assert isinstance(told, PutBack)
    assert told.cleared is cleared
