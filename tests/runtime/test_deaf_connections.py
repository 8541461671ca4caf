"""Connections that stay up and say nothing any more, as through a proxy whose server is gone: what is brief ends."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.runtime.bench import Bench
from tests.runtime.postgres_proxy import PostgresProxy
from worker import brief
from worker.availability import Availability
from worker.brief import brief_transaction
from worker.epoch import current_epoch
from worker.faults import is_lost_connection
from worker.pauses import paused

ASKED_LONG = 20.0


async def _in_transaction(engine: AsyncEngine, _redis: Redis) -> object:
    async with brief_transaction(engine) as connection:
        return (await connection.execute(text("SELECT 1"))).scalar_one()


async def _of_pauses(engine: AsyncEngine, _redis: Redis) -> object:
    return await paused(engine)


ASKS = pytest.mark.parametrize("ask", [_in_transaction, _of_pauses, current_epoch])


async def ended(asking: Awaitable[object], proxy: PostgresProxy) -> BaseException | object:
    """Give what comes of `asking`. One that doesn't end is a failure, whose line is cut for it."""
    task = asyncio.ensure_future(asking)
    _, waits = await asyncio.wait((task,), timeout=ASKED_LONG)
    if waits:
        proxy.hang_up()
    [came] = await asyncio.gather(task, return_exceptions=True)
    assert not waits, "it waited for an answer"
    return came


@ASKS
async def test_what_is_brief_loses_a_connection_that_answers_no_more_and_the_next_is_new(
    far: Bench,
    proxy: PostgresProxy,
    redis: Redis,
    ask: Callable[[AsyncEngine, Redis], Awaitable[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = await ask(far.engine, redis)
    proxy.deafen()
    with monkeypatch.context() as soon:
        soon.setattr(brief, "ANSWERS_WITHIN_S", 0.05)
        error = await ended(ask(far.engine, redis), proxy)
    assert isinstance(error, DBAPIError)
    assert is_lost_connection(error)
    after = await ask(far.engine, redis)
    assert type(after) is type(before)


async def test_a_server_that_answers_new_connections_is_there(
    far: Bench, proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    availability = Availability(far.engine)
    assert await availability.check()
    proxy.deafen()
    with monkeypatch.context() as soon:
        soon.setattr(brief, "ANSWERS_WITHIN_S", 3.0)
        assert await ended(availability.check(), proxy) is True
    await availability.close()
