"""worker migrate: bring the database up to date."""

import asyncio
import traceback

import typer
from sqlalchemy.exc import DBAPIError

from worker import migrate as migrations
from worker.app import App
from worker.cli.endings import NO_PRIVILEGE, Refusal
from worker.cli.loading import load_app
from worker.cli.reach import database
from worker.faults import is_lost_connection, of_driver, sqlstate
from worker.outdated import missing_versions
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
    apply(settings, app)
    typer.echo(f"Migrated {settings.app} to {', '.join(sorted(missing))}.")


async def _missing(settings: Settings, app: App) -> set[str]:
    async with database(settings) as engine:
        return await missing_versions(engine, app.migrations)


def apply(settings: Settings, app: App) -> None:
    """Apply what is missing. Raises Refusal for a migration that fails, and otherwise as `worker.migrate.migrate`."""
    url = settings.database_url.get_secret_value()
    try:
        migrations.migrate(url, app.migrations, pgbouncer=settings.pgbouncer)
    except DBAPIError as error:
        if is_lost_connection(error) or sqlstate(error) == NO_PRIVILEGE:
            raise
        # PostgreSQL's own text isn't shown: it may quote a row.
        fault = f"{sqlstate(error)} {type(of_driver(error)).__name__}".strip()
        raise _refusal(_version_at(error), fault) from error
    except Exception as error:
        if not (version := _version_at(error)):
            raise
        raise _refusal(version, type(error).__name__) from error


def _refusal(version: str, fault: str) -> Refusal:
    hint = "nothing was applied; correct it or the database, or run this again with --debug to see where"
    return Refusal(f"The migration{version} failed ({fault}): {hint}.")


def _version_at(error: BaseException) -> str:
    """The version that was being applied: of the modules that the error came through, the one that has a revision."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "down_revision" in frame.f_globals:
            return f" {frame.f_globals['revision']}"
    return ""  # at the commit
