"""Waking idle workers. A worker that found too little marks the queues as idle; who adds jobs to one says so.

A busy queue has no mark, and costs no publishing. A lost word costs no more than a poll.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import structlog
from redis.asyncio import Redis

CHANNEL = "ratchet:wake"
"""Of all databases of a Redis: pub/sub knows none, and a worker that is woken for nothing looks once."""
IDLE_KEY = "ratchet:idle:"
IDLE_MS = 30_000
"""How long a mark stays. Whoever relies on it renews it sooner."""
SILENCE_S = 10.0
"""After which the connection is asked whether it lives, and for which it may not answer."""
LISTEN_AGAIN_S = 1.0

WAKE = f"""
local function wake(queue)
    if redis.call('DEL', '{IDLE_KEY}' .. queue) == 1 then redis.call('PUBLISH', '{CHANNEL}', queue) end
end
"""
"""Lua, for the scripts that add jobs which are due."""


async def listen_for_wakes(redis: Redis, wake: Callable[[], None]) -> None:
    """Call `wake` whenever jobs were added to an idle queue. Reconnects for ever; ends when cancelled.

    Takes a connection of its own from the pool of `redis`.
    """
    log, is_lost = structlog.get_logger("worker.wake"), False
    pool: Any = redis.connection_pool  # its annotations are the blocking pool's
    while True:
        try:
            connection = await pool.get_connection()
            try:
                await connection.send_command("SUBSCRIBE", CHANNEL)
                await connection.read_response(push_request=True)  # raises where we may not
                if is_lost:
                    log.warning("listening_for_wakes_again")
                is_lost = False
                wake()  # for what was said before
                await _hear(connection, wake)
            finally:
                await connection.disconnect(nowait=True)  # nobody else can use one that is subscribed
                await pool.release(connection)
        except Exception as error:  # noqa: BLE001 - away or refusing; the poll is the net
            if not is_lost:
                hint = "jobs wait for the next poll meanwhile"
                log.warning("not_listening_for_wakes", reason=type(error).__name__, hint=hint)
            is_lost = True
        await asyncio.sleep(LISTEN_AGAIN_S)


async def _hear(connection: Any, wake: Callable[[], None]) -> NoReturn:
    """Raises TimeoutError where a server that is cut off says nothing, though it was asked."""
    is_asked = False
    while True:
        told = await connection.read_response(timeout=SILENCE_S, push_request=True)
        if told is None and is_asked:
            raise TimeoutError
        is_asked = told is None
        if told is None:
            await connection.send_command("PING")
        elif told[0] == b"message":
            wake()
            await asyncio.sleep(0)  # whoever was woken goes first
