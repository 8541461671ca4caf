"""PostgreSQL's advisory locks are everybody's who may connect, and no part of the relay waits for one."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.outbox.hands import Hands, Play
from worker.brief import BRIEF
from worker.outcome import Completed

FORMER_TURN = 0x7261746368_72


@pytest.mark.parametrize("lock", [BRIEF, FORMER_TURN])
async def test_no_advisory_lock_holds_up_what_others_enqueue(
    lock: int, producer: AsyncConnection, hands: Hands
) -> None:
    await producer.execute(text("select pg_advisory_lock(:lock)"), {"lock": lock})
    await hands.enqueue(Play())
    await hands.enqueue(Play(), key="k")
    assert [type(outcome) for outcome in await hands.work()] == [Completed, Completed]
    await hands.redis.flushdb()
    await hands.enqueue(Play())
    await hands.relay.drain()
    await hands.redis.flushdb()
    assert [type(outcome) for outcome in await hands.work()] == [Completed]
