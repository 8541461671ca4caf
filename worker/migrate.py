"""Bring a database up to date, and tell whether it is. The versions are Alembic's, the runtime's and the domain's."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.database import create_engine, read_committed
from worker.outdated import RUNTIME_VERSIONS
from worker.settings import SettingsError
from worker.versions import look, understood

ADVISORY_LOCK = 0x7261746368_6D
"""Two `worker migrate` at once wait for each other. ("ratchm" in ASCII.)"""


def migrate(database_url: str, version_locations: Sequence[Path] = (), *, pgbouncer: bool = False) -> None:
    """Apply what is missing, all of it in one transaction.

    Raises SettingsError for a database that isn't in UTF-8, and what PostgreSQL raises, with nothing applied.
    """
    asyncio.run(_migrate(database_url, version_locations, pgbouncer=pgbouncer))


async def _migrate(database_url: str, version_locations: Sequence[Path], *, pgbouncer: bool) -> None:
    engine = create_engine(database_url, pool_size=1, application="ratchet migrate", pgbouncer=pgbouncer)
    try:
        async with read_committed(engine).begin() as connection:  # who has waited sees what the other has applied
            if fault := await encoding_fault(connection):
                raise SettingsError(f"DATABASE_URL can't be used: {fault}")
            await connection.execute(text("set local lock_timeout = 0"))
            await connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
            await connection.run_sync(_upgrade, _config(version_locations))
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, config: Config) -> None:
    state = look(connection, config)
    if state.missing:
        config.attributes["connection"] = connection
        with understood(connection, config, state):
            command.upgrade(config, "heads")


def _config(version_locations: Sequence[Path]) -> Config:
    config = Config()
    config.set_main_option("script_location", str(RUNTIME_VERSIONS.parent))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, (RUNTIME_VERSIONS, *version_locations))))
    return config


async def encoding_fault(connection: AsyncConnection) -> str:
    """A sentence where the database can't hold every text, as of an error or a job's result; else empty."""
    encoding = (await connection.execute(text("select current_setting('server_encoding')"))).scalar_one()
    return "" if encoding == "UTF8" else f"its database is in {encoding}; create one with encoding 'UTF8'."


def missing(connection: Connection, version_locations: Sequence[Path]) -> set[str]:
    """The newest versions that the database hasn't got, as Alembic tells it."""
    return look(connection, _config(version_locations)).missing
