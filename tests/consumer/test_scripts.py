"""Several scripts in one round trip: each is carried out, and answered, whatever becomes of the others."""

from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import ResponseError

from tests.consumer.redis_proxy import RedisProxy
from worker.broker import connect_broker
from worker.scripts import Call, Script, run, run_all

ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
FAIL = Script("return redis.error_reply('ERR not today')")


@pytest.fixture
async def ours(redis_url: str) -> AsyncIterator[ArqRedis]:
    async with connect_broker(redis_url) as client:
        yield client
        await client.delete("n")


async def test_they_are_answered_in_order(ours: ArqRedis) -> None:
    assert await run_all(ours, Call(ADD, ["n"], [1]), Call(ADD, ["n"], [10])) == [1, 11]


async def test_a_server_that_does_not_know_them_is_told_their_text(ours: ArqRedis) -> None:
    await run(ours, Call(ADD, ["n"], [1]))
    await ours.script_flush()
    assert await run_all(ours, Call(ADD, ["n"], [1]), Call(FAIL, (), ()), Call(ADD, ["n"], [1])) == [2, ERROR, 3]
    assert await run(ours, Call(ADD, ["n"], [1])) == 4


async def test_the_error_of_one_keeps_no_other_from_its_answer(ours: ArqRedis) -> None:
    assert await run_all(ours, Call(FAIL, (), ()), Call(ADD, ["n"], [1])) == [ERROR, 1]
    assert await ours.get("n") == b"1"


async def test_the_error_of_a_single_one_is_raised(ours: ArqRedis) -> None:
    with pytest.raises(ResponseError, match="not today"):
        await run(ours, Call(FAIL, (), ()))
    assert await ours.ping()


async def test_a_connection_that_is_lost_raises_and_is_made_anew(redis_url: str, ours: ArqRedis) -> None:
    await run(ours, Call(ADD, ["n"], [1]))  # so that the server knows it: a refusal would be the answer that is lost
    async with RedisProxy(redis_url) as proxy, connect_broker(proxy.url) as client:
        proxy.lose_answer_to(b"EVALSHA")
        with pytest.raises(ConnectionLost):
            await run_all(client, Call(ADD, ["n"], [1]), Call(ADD, ["n"], [1]))
        assert await run(client, Call(ADD, ["n"], [1])) == int(await ours.get("n") or 0)


class _AnError:
    """Equals any error that a script gave."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseError) and "not today" in str(other)

    def __hash__(self) -> int:
        return 0


ERROR = _AnError()
