"""Hears PostgreSQL's NOTIFY, on a connection of its own: for what is in the outbox, and for what is paused."""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from worker.database import DatabaseAway, connect

LISTEN_AGAIN_S = 1.0


async def listen(url: str, wakes: Mapping[str, Callable[[], None]], application: str) -> None:
    """Call what stands beside a channel when that is notified. Reconnects for ever; ends when cancelled."""

    def on_notify(_connection: object, _pid: int, channel: str, _payload: object) -> None:
        wakes[channel]()

    log, is_lost = structlog.get_logger("worker.listen"), False
    while True:
        try:
            connection = await connect(url, application)
            ended = asyncio.Event()
            try:
                connection.add_termination_listener(lambda _, ended=ended: ended.set())
                for channel, wake in wakes.items():
                    await connection.add_listener(channel, on_notify)
                    wake()
                if is_lost:
                    log.warning("listening_again")
                is_lost = False
                await ended.wait()
            finally:
                connection.terminate()
        except Exception as error:  # noqa: BLE001 - away or refusing; the relay's poll is the net
            if not is_lost:
                reason = str(error) if isinstance(error, DatabaseAway) else type(error).__name__
                log.warning("not_listening", reason=reason, hint="jobs wait for the relay's poll meanwhile")
            is_lost = True
        await asyncio.sleep(LISTEN_AGAIN_S)
