"""The relay is woken, waits where a server is away, and asks no more than it needs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.outbox.conftest import Psql
from tests.outbox.hands import AN_HOUR, Hands, Play
from tests.support.types_asked import types_asked
from tests.support.waiting import wait_until
from worker.availability import Availability
from worker.database import connect
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.listen import listen
from worker.outbox import enqueue, enqueue_many
from worker.relay import OUTBOX_CHANNEL, Intervals, Relay
from worker.reporting.observer import Observers
from worker.shield import cancel_all


@asynccontextmanager
async def running(relay: Relay) -> AsyncGenerator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        await cancel_all([task])


def patient(hands: Hands, poll: timedelta) -> Relay:
    intervals = Intervals(poll=poll, settle=timedelta(0))
    return Relay(
        hands.engine, hands.redis, Availability(hands.engine), Observers(), pushed=lambda: None, intervals=intervals
    )


def is_queued(hands: Hands, job_id: str) -> Callable[[], Awaitable[bool]]:
    async def is_queued() -> bool:
        score: float | None = await hands.redis.zscore("arq:queue", job_id)
        return score is not None

    return is_queued


async def test_a_commit_wakes_the_relay_by_notify(hands: Hands, database_url: str) -> None:
    relay = patient(hands, poll=AN_HOUR)
    listening = asyncio.create_task(listen(database_url, {OUTBOX_CHANNEL: relay.wake}, "test listens"))
    async with running(relay):
        [job_id] = await hands.enqueue(Play())
        await wait_until(is_queued(hands, job_id))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_a_statement_notifies_once_whatever_it_adds_and_the_payload_is_constant(
    hands: Hands, database_url: str
) -> None:
    heard: list[object] = []

    def hear(*told: object) -> None:
        heard.append(told[-1])

    connection = await connect(database_url, "test listens")
    await connection.add_listener(OUTBOX_CHANNEL, hear)
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(1500)])
    await hands.sql("notify ratchet_outbox, 'the end'")

    async def all_is_heard() -> bool:
        return "the end" in heard

    await wait_until(all_is_heard)
    assert heard == ["", "the end"]
    await connection.close()


async def test_without_notify_the_poll_is_the_net(hands: Hands, psql: Psql, outbox_database: str) -> None:
    await asyncio.to_thread(psql, f"alter database {outbox_database} set worker.notify = 'off'")
    try:
        heard = await asyncio.to_thread(
            psql, "listen ratchet_outbox; select worker.enqueue('test.play', '{}', job_id => 'j'); select 1"
        )
        assert "notification" not in heard
        async with running(patient(hands, poll=timedelta(milliseconds=20))):
            await wait_until(is_queued(hands, "j"))
    finally:
        await asyncio.to_thread(psql, f"alter database {outbox_database} reset worker.notify")


async def test_an_acknowledgement_wakes_the_relay_for_a_job_that_waited_for_it(hands: Hands) -> None:
    await hands.enqueue(Play(text="first"), key="k")
    await hands.relay.drain()
    await hands.enqueue(Play(text="second"), key="k")
    [claim] = await hands.take()
    hands.relay = patient(hands, poll=AN_HOUR)

    async def the_relay_has_looked() -> bool:
        return claim.job_id in hands.relay._waiting

    async with running(hands.relay):
        await wait_until(the_relay_has_looked)
        await hands.finish(claim)
        await wait_until(is_queued(hands, claim.job_id))


async def test_the_relay_outlives_redis_s_absence(hands: Hands, valkey: EmbeddedValkey) -> None:
    await asyncio.to_thread(valkey.stop)
    async with running(patient(hands, poll=timedelta(milliseconds=20))):
        [job_id] = await hands.enqueue(Play())
        await asyncio.to_thread(valkey.start)
        await wait_until(is_queued(hands, job_id))


async def test_the_relay_outlives_postgresql_s_absence(hands: Hands, postgres: EmbeddedPostgres) -> None:
    relay = patient(hands, poll=timedelta(milliseconds=20))
    async with running(relay):
        await asyncio.to_thread(postgres.stop)

        async def it_is_noticed() -> bool:
            return not relay._availability.is_up()

        await wait_until(it_is_noticed)
        await asyncio.to_thread(postgres.start)
        await hands.engine.dispose()
        [job_id] = await hands.enqueue(Play())
        await wait_until(is_queued(hands, job_id))


async def test_no_connection_has_to_be_asked_about_types(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = types_asked(monkeypatch)
    async with AsyncSession(hands.engine) as session, session.begin():
        enqueue_many(session, [Play() for _ in range(3)])
        coalescing = enqueue(session, Play(), key="k")
        enqueue(session, Play(), queue="taken")
    await hands.redis.set("taken", "a text, so that a row is refused", px=60_000)
    relay = patient(hands, timedelta(milliseconds=1))
    async with running(relay):  # pushes and sweeps
        await wait_until(is_queued(hands, coalescing))
    assert await relay.drain() == 0
    assert asked == []
    async with hands.engine.connect() as connection:
        await connection.execute(text("select cast(:numbers as bigint[])"), {"numbers": [1]})
    assert asked == [1016], "an array of numbers is asked for, so the above says something"


async def test_many_relays_at_once_send_everything_once(engine: AsyncEngine, broker: ArqRedis, hands: Hands) -> None:
    relays = [patient(hands, poll=AN_HOUR) for _ in range(3)]
    async with AsyncSession(engine) as session, session.begin():
        enqueue_many(session, [Play(text=str(number)) for number in range(30)])
    for number in range(30):
        await hands.enqueue(Play(text=f"k{number}"), key=str(number % 10))
    counts = await asyncio.gather(*(relay.drain() for relay in relays))
    assert sum(counts) == 40
    await hands.work()
    assert len(await hands.applied()) == 40
