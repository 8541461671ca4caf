"""Our connections to Redis: a command leaves at once, and none gets the answer to another."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis import Redis as Blocking
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import TimeoutError as RedisTimeout

from tests.consumer.redis_proxy import RedisProxy
from worker.broker import connect_broker

LARGE = b"x" * 32_000_000
"""More than the sockets' buffers take."""


@pytest.fixture
async def ours(redis_url: str) -> AsyncIterator[ArqRedis]:
    async with connect_broker(redis_url) as client:
        await client.ping()
        yield client


async def until(arrived: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not arrived():  # noqa: ASYNC110 - the stream tells nobody of it
            await asyncio.sleep(0)


async def test_a_command_leaves_in_the_turn_of_the_loop_in_which_it_is_asked_for(
    ours: ArqRedis, redis_url: str
) -> None:
    client: Any = ours
    pushing = asyncio.create_task(client.lpush("told", "now"))
    with Blocking.from_url(redis_url) as blocking:
        other: Any = blocking
        await asyncio.sleep(0)
        assert other.blpop(["told"], timeout=5) == (b"told", b"now")  # which holds up the loop
    assert await pushing == 1


async def test_one_that_the_server_has_closed_is_opened_anew(ours: ArqRedis, redis_url: str) -> None:
    with Blocking.from_url(redis_url) as other:
        other.client_kill_filter(_type="normal", skipme=True)
    pool: Any = ours.connection_pool
    await until(pool._available_connections[-1]._reader.at_eof)
    assert await ours.ping()


async def test_one_that_was_reset_while_it_lay_idle_is_opened_anew() -> None:
    """As load balancers and firewalls do. No end of the stream is told of then."""
    lines: list[asyncio.StreamWriter] = []

    async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        with suppress(OSError):
            while asked := await reader.read(2**16):
                writer.write(b"+PONG\r\n" * asked.count(b"*"))
        writer.close()

    async with await asyncio.start_server(pong, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect_broker(f"redis://127.0.0.1:{port}") as client:
            await client.ping()
            pool: Any = client.connection_pool
            stream = pool._available_connections[-1]._reader
            for line in lines:
                line.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
                line.transport.abort()
            await until(lambda: stream.exception() is not None)
            assert await client.ping()


async def test_an_answer_that_nobody_waited_for_is_nobody_elses(ours: ArqRedis) -> None:
    pool: Any = ours.connection_pool
    connection = await pool.get_connection()
    await connection.send_command("ECHO", "another's")
    await until(lambda: bool(connection._reader._buffer))
    await pool.release(connection)
    assert await ours.echo("ours") == b"ours"


async def test_a_server_that_takes_nothing_is_given_up(ours: ArqRedis, redis_url: str) -> None:
    async with RedisProxy(redis_url) as proxy, connect_broker(proxy.url) as client:
        await client.ping()
        pool: Any = client.connection_pool
        connection = pool._available_connections[-1]
        connection.socket_timeout = 0.05
        proxy.swallow()
        with pytest.raises(RedisTimeout, match="writing"):
            await client.set("large", LARGE)
        assert not connection.is_connected


async def test_a_connection_that_was_closed_meanwhile_says_so(ours: ArqRedis) -> None:
    pool: Any = ours.connection_pool
    connection = await pool.get_connection()
    connection._writer.transport.abort()

    async def ask() -> None:
        await connection.send_command("PING")
        await connection.read_response()

    with pytest.raises(ConnectionLost):
        await ask()
    await pool.release(connection)
