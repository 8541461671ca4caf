"""The servers, a table for what handlers do, and a worker that waits for nothing longer than it must."""

import asyncio
import importlib
import pkgutil
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

import worker
from tests.faults.scenarios import Scenario
from tests.faults.stage import Stage, lines_are_known
from worker import (
    availability,
    broker,
    bulk,
    consumer,
    database,
    listen,
    reporting,
    runtime,
    shield,
    suspects,
    ticker,
    wake,
    zombies,
)
from worker.broker import connect_broker
from worker.database import create_engine
from worker.dev import EmbeddedPostgres
from worker.driver import SERVER_SETTINGS
from worker.relay import Intervals

SHORT, TEN_MS = 0.01, timedelta(milliseconds=10)
QUICK: tuple[tuple[ModuleType, str, Any], ...] = (
    (availability, "RETRY_FROM_S", SHORT),
    (broker, "ANSWER_TIMEOUT_S", 0.5),
    (consumer, "AWAY_DELAY_S", SHORT),
    (listen, "LISTEN_AGAIN_S", SHORT),
    (shield, "CANCEL_AGAIN_S", 5 * SHORT),
    (ticker, "LOOK_AGAIN_AFTER", TEN_MS),
    (ticker, "LOOK_AT_LEAST_EVERY", 2 * TEN_MS),
    (wake, "LISTEN_AGAIN_S", SHORT),
    (zombies, "LOCK_TIMEOUT_MS", 100),
    (zombies, "LOOK_EVERY_S", SHORT),
)
"""What happens is the same, sooner."""
RELEASED = ("BUSY", "OFFER_AGAIN")
"""Delays that most modules import by name."""


@pytest.fixture(scope="session")
def modules() -> dict[str, ModuleType]:
    """Every module of the runtime itself, by its name. A person's commands, `worker.cli`, carry out no job."""
    folders = {"": worker, "bulk.": bulk, "suspects.": suspects, "reporting.": reporting}
    found = [
        each.name
        for prefix, folder in folders.items()
        for each in pkgutil.iter_modules(folder.__path__, prefix)
        if not each.ispkg
    ]
    return {name: importlib.import_module(f"worker.{name}") for name in found if name != "__main__"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, modules: dict[str, ModuleType]) -> None:
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)
    for module in modules.values():
        for name in RELEASED:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, TEN_MS)
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "100")

    def intervals(**given: timedelta) -> Intervals:
        return Intervals(**{**given, "settle": TEN_MS})

    monkeypatch.setattr(runtime, "Intervals", intervals)


@pytest.fixture
async def stage_of(
    postgres: EmbeddedPostgres, database_url: str, redis_url: str, quick: None
) -> AsyncIterator[Callable[[Scenario], Stage]]:
    """Make the stage of a scenario. All have one database."""
    name = database_url.partition("@/")[2].partition("?")[0]
    postgres.psql("create table effect (id text, note text)", "create index on effect (id)", database=name)
    # Nobody asks what came of the tasks of a worker that was killed.
    asyncio.get_running_loop().set_exception_handler(_leave_it)
    with lines_are_known() as engines:
        judge = await database.connect(database_url, "test")
        engine, redis = create_engine(database_url, pool_size=1, application="test"), connect_broker(redis_url)
        servers = {"database_url": database_url, "redis_url": redis_url}
        # The sweep comes soon, since it alone mends a push that was lost after its rows were marked sent.
        given = {"lease": 1, "poll_delay": 0.02, "relay_poll": 0.05, "sweep_interval": 0.5, "shutdown_grace": 0}
        given["concurrency"] = 4

        def stage_of(scenario: Scenario) -> Stage:
            return Stage(
                judge, engine, redis, scenario.app(), {**servers, **given, **scenario.settings}, scenario.worker
            )

        yield stage_of
        for one in (engine, *engines):
            await one.dispose()
        await judge.close()
        await redis.flushall()
        await redis.aclose()


def _leave_it(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    pass
