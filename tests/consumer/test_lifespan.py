"""What an app opens for its handlers, for as long as they run."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from arq.connections import ArqRedis

from tests.consumer.conftest import Effects
from tests.consumer.jobs import PING, Ping, calling
from tests.consumer.told import Told
from worker import lifespan
from worker.app import App
from worker.queue import Queue
from worker.runtime import run_worker
from worker.settings import load_settings


class Mailer:
    """Something that works while it is open."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self.told.append("opened")
        yield
        self.told.append("closed")


async def undecorated() -> AsyncGenerator[None]:
    """As one is easily written."""
    yield


async def test_it_is_open_before_the_first_job_and_until_the_last_has_ended(
    arq: ArqRedis, settings: dict[str, Any], effects: Effects
) -> None:
    mailer = Mailer()
    await Queue(arq).enqueue_many([Ping(), Ping()])
    app = App(handlers=[calling(lambda: mailer.told.append("sent"))], lifespan=mailer.opened)
    await run_worker(app, load_settings(**settings), Told(), burst=True)
    assert mailer.told == ["opened", "sent", "sent", "closed"]
    assert len(await effects()) == 2


async def test_where_it_cant_be_opened_no_job_is_taken(
    arq: ArqRedis, settings: dict[str, Any], effects: Effects
) -> None:
    def broken() -> AbstractAsyncContextManager[None]:
        raise OSError("no such mail server")

    await Queue(arq).enqueue(Ping())
    with pytest.raises(OSError, match="no such mail server"):
        await run_worker(App(handlers=[PING], lifespan=broken), load_settings(**settings), Told(), burst=True)
    assert await arq.zcard("arq:queue") == 1


@pytest.mark.parametrize("ends", ["raises", "hangs"])
async def test_one_that_doesnt_close_is_told_and_the_worker_ends_in_order(
    settings: dict[str, Any], effects: Effects, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    @asynccontextmanager
    async def stuck() -> AsyncGenerator[None]:
        yield
        if ends == "raises":
            raise TimeoutError
        await asyncio.Event().wait()

    monkeypatch.setattr(lifespan, "CLOSE_S", 0.05)
    told = Told()
    await run_worker(App(handlers=[PING], lifespan=stuck), load_settings(**settings), told, burst=True)
    assert [(part, type(error)) for part, error in told.faults] == [("lifespan", TimeoutError)]


@pytest.mark.parametrize("given", [Mailer(), undecorated])
def test_what_gives_no_context_manager_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"The app has lifespan=.*; give a function that returns"):
        App(handlers=[PING], lifespan=given)
