"""worker migrate: bring the database up to date."""

import asyncio

import typer

from worker import migrate as migrations
from worker.app import App
from worker.cli.loading import load_app
from worker.cli.reach import database
from worker.settings import Settings, load_settings


def migrate() -> None:
    """Bring the database up to date: the runtime's tables, then those of WORKER_APP.

    All of it is one transaction. Two at once wait for each other. Run it once for each deploy, before new code starts.
    """
    settings = load_settings()
    app = load_app(settings.app)
    missing = asyncio.run(_missing(settings, app))
    if not missing:
        typer.echo(f"The database is up to date with {settings.app}.")
        return
    migrations.migrate(settings.database_url.get_secret_value(), app.migrations, pgbouncer=settings.pgbouncer)
    typer.echo(f"Migrated {settings.app} to {', '.join(sorted(missing))}.")


async def _missing(settings: Settings, app: App) -> set[str]:
    async with database(settings) as engine:
        return await migrations.missing_versions(engine, app.migrations)
