"""What has ended goes to Redis with the next claim: in the same round trip, and never lost for the claim's sake."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ResponseError

from tests.consumer.jobs import Ping
from tests.consumer.redis_proxy import RedisProxy, sha_of
from worker.acknowledgements import Acknowledgements
from worker.broker import connect_broker
from worker.claim import Claim
from worker.claim_script import CLAIM
from worker.claims import Claims
from worker.delivery import Report
from worker.endings import Along, Finish
from worker.lease import Leases
from worker.outcome import Completed
from worker.queue import Queue

QUEUE = "arq:queue"
LEASE = timedelta(seconds=15)

Told = list[list[bool] | BaseException]


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[RedisProxy]:
    async with RedisProxy(redis_url) as made:
        yield made


@pytest.fixture
async def claims(proxy: RedisProxy) -> AsyncIterator[Claims]:
    async with connect_broker(proxy.url) as client:
        yield Claims(client, LEASE)


async def enqueue(arq: ArqRedis, *job_ids: str) -> None:
    for job_id in job_ids:
        await Queue(arq).enqueue(Ping(), job_id=job_id)


def carrying(told: Told, *claims: Claim) -> Along:
    return Along([Finish(claim) for claim in claims], told.append)


async def test_it_is_settled_before_more_is_claimed(arq: ArqRedis, claims: Claims) -> None:
    await enqueue(arq, "first", "second")
    first = await claims.take([QUEUE], 1, "me")
    told: Told = []
    [second] = await claims.take([QUEUE], 1, "me", lambda: carrying(told, *first))
    assert told == [[True]]
    assert second.job_id == "second"
    assert await arq.zrange(QUEUE, 0, -1) == [b"second"]
    await arq.flushall()


async def test_a_lease_that_was_lost_is_told_and_the_claim_made(arq: ArqRedis, claims: Claims) -> None:
    await enqueue(arq, "first", "second")
    first = await claims.take([QUEUE], 1, "me")
    await arq.set("arq:in-progress:first", "another's")
    told: Told = []
    assert [claim.job_id for claim in await claims.take([QUEUE], 1, "me", lambda: carrying(told, *first))] == ["second"]
    assert told == [[False]]
    await arq.flushall()


async def test_an_error_of_the_settling_leaves_the_claim(
    arq: ArqRedis, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    await enqueue(arq, "first", "second")
    first = await claims.take([QUEUE], 1, "me")

    def wrong(_ending: object) -> tuple[str, str]:
        return "too", "few"

    monkeypatch.setattr("worker.endings._arguments", wrong)
    told: Told = []
    assert [claim.job_id for claim in await claims.take([QUEUE], 1, "me", lambda: carrying(told, *first))] == ["second"]
    assert [type(one) for one in told] == [ResponseError]
    await arq.flushall()


async def test_where_the_answer_is_lost_both_hear_of_it(arq: ArqRedis, claims: Claims, proxy: RedisProxy) -> None:
    await enqueue(arq, "before", "first", "second")
    # So that the server knows both scripts: a refusal of one would be taken for the answer to all.
    await claims.settle([Finish(before) for before in await claims.take([QUEUE], 1, "me")])
    first = await claims.take([QUEUE], 1, "me")
    proxy.lose_answer_to(sha_of(CLAIM))
    told: Told = []
    with pytest.raises(ConnectionLost):
        await claims.take([QUEUE], 1, "me", lambda: carrying(told, *first))
    assert [isinstance(one, ConnectionLost) for one in told] == [True]
    await arq.flushall()


async def test_where_the_claim_is_cancelled_both_hear_of_it(arq: ArqRedis, claims: Claims, proxy: RedisProxy) -> None:
    await enqueue(arq, "first", "second")
    first = await claims.take([QUEUE], 1, "me")
    proxy.hold_back(sha_of(CLAIM))
    told: Told = []
    taking = asyncio.create_task(claims.take([QUEUE], 1, "me", lambda: carrying(told, *first)))
    await proxy.holds.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert [type(one) for one in told] == [asyncio.CancelledError]
    assert await arq.zcard(QUEUE) == 2
    await arq.flushall()


@pytest.fixture
def faults() -> list[BaseException]:
    return []


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def acknowledgements(claims: Claims, redis_url: str, faults: list[BaseException], ended: list[str]) -> Acknowledgements:
    return Acknowledgements(
        claims,
        Leases(redis_url, LEASE, LEASE, recycle=lambda: None, fault=faults.append),
        timedelta(0),
        is_busy=lambda: True,
        told=lambda _report, claim: ended.append(claim.job_id),
        done=lambda: None,
        fault=faults.append,
    )


async def test_what_a_cancelled_claim_had_with_it_is_told_by_itself(
    arq: ArqRedis, claims: Claims, acknowledgements: Acknowledgements, ended: list[str]
) -> None:
    await enqueue(arq, "first", "second")
    first, second = await claims.take([QUEUE], 2, "me")
    acknowledgements.add(first, Report(Completed()))
    along = acknowledgements.hand_over()
    assert along is not None
    acknowledgements.add(second, Report(Completed()))
    assert acknowledgements.hand_over() is None
    along.told(asyncio.CancelledError())
    await acknowledgements.all_sent()
    assert sorted(ended) == ["first", "second"]
    assert await arq.zcard(QUEUE) == 0


async def test_a_fault_of_who_is_told_costs_no_claim(
    arq: ArqRedis, claims: Claims, acknowledgements: Acknowledgements, faults: list[BaseException]
) -> None:
    await enqueue(arq, "first", "second")
    [first] = await claims.take([QUEUE], 1, "me")
    acknowledgements.add(first, Report(Completed()))

    def break_down(_report: Report, _claim: Claim) -> None:
        raise ValueError("a bug")

    acknowledgements._told = break_down  # pyright: ignore[reportPrivateUsage]
    [second] = await claims.take([QUEUE], 1, "me", acknowledgements.hand_over)
    await acknowledgements.all_sent()
    assert second.job_id == "second"
    assert [repr(fault) for fault in faults] == ["ValueError('a bug')"]
    await arq.flushall()


async def test_where_nothing_can_be_put_into_words_nothing_goes_along(
    arq: ArqRedis,
    claims: Claims,
    acknowledgements: Acknowledgements,
    faults: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await enqueue(arq, "first")
    [first] = await claims.take([QUEUE], 1, "me")
    monkeypatch.setattr("worker.acknowledgements.ending", None)
    acknowledgements.add(first, Report(Completed()))
    assert acknowledgements.hand_over() is None
    await acknowledgements.all_sent()
    assert [type(fault) for fault in faults] == [TypeError]
    await arq.flushall()


async def test_what_was_told_of_some_stays_told_where_others_cannot_be(
    arq: ArqRedis,
    claims: Claims,
    acknowledgements: Acknowledgements,
    ended: list[str],
    proxy: RedisProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More have ended than one script takes, and the connection is lost before the second."""
    monkeypatch.setattr("worker.acknowledgements.AT_ONCE", 2)
    await enqueue(arq, "first", "second", "third")
    proxy.cut_before = b"third"
    for claim in await claims.take([QUEUE], 3, "me"):
        acknowledgements.add(claim, Report(Completed()))
    await acknowledgements.all_sent()
    assert ended == ["first", "second"]
    assert await arq.zrange(QUEUE, 0, -1) == [b"third"]
    await arq.flushall()
