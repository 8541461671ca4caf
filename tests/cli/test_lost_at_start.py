"""A connection that breaks while a worker starts is waited out, as an outage is at any other time."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.app import App
from worker.cli import run
from worker.outdated import missing_versions
from worker.settings import load_settings


async def test_a_connection_lost_while_versions_are_read_does_not_end_the_worker(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [1, 2]

    async def lose_then_read(engine: AsyncEngine, folders: object) -> set[str]:
        if losses:
            losses.pop()
            async with engine.connect() as connection:
                await connection.exec_driver_sql("select pg_terminate_backend(pg_backend_pid())")
        del folders
        return set(await missing_versions(engine, ()))

    monkeypatch.setattr(run, "missing_versions", lose_then_read)
    await run.ready(App(handlers=[]), load_settings(database_url=database_url, redis_url=redis_url))
    assert not losses
