"""Commands in this process, against real servers; what needs a process of its own has `start_worker`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from tests.cli.app import app
from worker.cli.commands import make_cli
from worker.database import create_engine
from worker.outcome import Outcome
from worker.testing import drain

APP = "tests.cli.app:app"


class Command(Protocol):
    def __call__(self, *args: str, exit_code: int = 0, **env: str | None) -> Result:
        """Run `worker ARGS…`; it must end with `exit_code`. An error must be one sentence, and no traceback."""
        ...


def run_command(*args: str, exit_code: int = 0, **env: str | None) -> Result:
    result = CliRunner().invoke(make_cli(), args, env=env)
    assert result.exit_code == exit_code, result.output
    assert "--debug" in args or "Traceback" not in result.output
    return result


@pytest.fixture
def command(database_url: str, redis_url: str) -> Command:
    def command(*args: str, exit_code: int = 0, **env: str | None) -> Result:
        servers: dict[str, str | None] = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_APP": APP}
        return run_command(*args, exit_code=exit_code, **{**servers, **env})

    return command


@pytest.fixture
def query(database_url: str) -> Callable[..., Sequence[Any]]:
    """Run one statement and return its rows."""

    async def fetch(statement: str, *args: object) -> Sequence[Any]:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetch(statement, *args)
        finally:
            await connection.close()

    def query(statement: str, *args: object) -> Sequence[Any]:
        return asyncio.run(fetch(statement, *args))

    return query


@pytest.fixture
def work(database_url: str) -> Callable[[], list[Outcome]]:
    """Run everything in the outbox that is due, without Redis, and return the outcomes."""

    async def run() -> list[Outcome]:
        engine = create_engine(database_url, pool_size=3)
        try:
            return [outcome for _, outcome in await drain(app, engine)]
        finally:
            await engine.dispose()

    return lambda: asyncio.run(run())
