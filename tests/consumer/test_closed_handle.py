"""A connection that was closed while a command was on its way into it is a lost one, whichever loop says so."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.broker import connect_broker
from worker.event_loop import loop_factory


def test_a_command_on_a_closed_connection_is_a_lost_connection(redis_url: str) -> None:
    async def send() -> None:
        client: Any = connect_broker(redis_url)
        try:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            await connection.send_command("PING")
            await connection.read_response()  # asyncio's own loop notices here
        finally:
            await client.aclose()

    with asyncio.Runner(loop_factory=loop_factory()) as runner, pytest.raises(RedisConnectionError):
        runner.run(send())
