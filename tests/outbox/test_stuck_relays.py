"""A relay that is stopped while PostgreSQL answers it: the server waits for it in the middle of a statement."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from tests.outbox.hands import Hands, Play
from tests.runtime.postgres_proxy import PostgresProxy
from tests.support.proxy import _Line
from tests.support.waiting import wait_until
from worker import brief
from worker.availability import Availability
from worker.database import create_engine
from worker.relay import Intervals, Relay
from worker.reporting.observer import Observers
from worker.shield import cancel_all

LARGE = Play(text="x" * 300_000)
ENOUGH = 25
"""Of these, for more than sockets hold."""


class Stops(PostgresProxy):
    """Reads no more of an answer that is large."""

    async def _forward(self, line: _Line, data: bytes, writer: asyncio.StreamWriter) -> None:
        if LARGE.text[:1000].encode() in data:
            self.swallow()
        await super()._forward(line, data, writer)


@pytest.fixture
async def stopped(hands: Hands, database_url: str, tmp_path: Path) -> AsyncIterator[Relay]:
    """A relay that is stopped in the first large answer that it gets."""
    proxy = Stops(database_url, tmp_path)
    await proxy.start()
    engine = create_engine(proxy.url, pool_size=4)
    intervals = Intervals(settle=timedelta(0))
    relay = Relay(engine, hands.redis, Availability(engine), Observers(), pushed=lambda: None, intervals=intervals)
    yield relay
    await proxy.stop()
    await engine.dispose()


async def wait_until_stuck(hands: Hands) -> None:
    async def is_stuck() -> bool:
        waiting = "select pid from pg_stat_activity where wait_event = 'ClientWrite' and datname = current_database()"
        return bool(await hands.sql(waiting))

    await wait_until(is_stuck)


async def test_others_send_again_what_a_wiped_redis_lacks(
    hands: Hands, stopped: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hands.enqueue(*[LARGE] * ENOUGH)
    await hands.relay.drain()
    await hands.redis.flushall()
    draining = asyncio.create_task(stopped.drain())
    await wait_until_stuck(hands)
    with pytest.raises(DBAPIError, match="lock timeout"):
        await hands.relay.drain()
    monkeypatch.setattr(brief, "STUCK_S", 0)
    assert await hands.relay.drain() == ENOUGH
    await cancel_all([draining])


async def test_others_send_what_it_was_about_to(hands: Hands, stopped: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    await hands.enqueue(*[LARGE] * ENOUGH)
    draining = asyncio.create_task(stopped.drain())
    await wait_until_stuck(hands)
    assert await hands.relay.drain() == 0
    monkeypatch.setattr(brief, "STUCK_S", 0)
    await hands.relay._sweep.step()
    assert await hands.relay.drain() == ENOUGH
    await cancel_all([draining])


async def test_one_of_another_role_stops_no_sweep(
    hands: Hands, stopped: Relay, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of pg_monitor sees that it is stuck, and may not end it."""
    await hands.sql("create role monitoring login in role pg_monitor")
    theirs = create_engine(database_url.replace("postgres@", "monitoring@"), pool_size=1)
    try:
        await hands.enqueue(*[LARGE] * ENOUGH)
        draining = asyncio.create_task(stopped.drain())
        await wait_until_stuck(hands)
        monkeypatch.setattr(brief, "STUCK_S", 0)
        async with brief.brief_transaction(theirs) as connection:
            await brief.end_stuck(connection)
        assert await hands.relay.drain() == 0
        await hands.relay._sweep.step()  # of its own role
        assert await hands.relay.drain() == ENOUGH
        await cancel_all([draining])
    finally:
        await theirs.dispose()
        await hands.sql("drop role monitoring")
