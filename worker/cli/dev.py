"""worker dev: servers and a worker for development, from one command."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import typer

from worker import event_loop
from worker.app import App
from worker.cli.endings import Refusal
from worker.cli.loading import load_app
from worker.cli.migrate import apply
from worker.cli.run import consume
from worker.dev import EmbeddedPostgres, EmbeddedServerError, EmbeddedValkey
from worker.reporting.start import start_reporting
from worker.settings import Settings, load_settings

FOLDER = Path(".dev")


def dev() -> None:
    """Start PostgreSQL and Valkey below .dev/, migrate, and run a worker until Ctrl-C.

    Nothing need be installed but the extra `embedded`. The data stays in .dev/ for the next time. The two URLs that are
    printed are for psql, for a Redis client, and for DATABASE_URL and REDIS_URL of commands in another shell.
    """
    try:
        with _servers() as (database_url, redis_url):
            # For what the application itself reads from the environment, too.
            os.environ.update(DATABASE_URL=database_url, REDIS_URL=redis_url)
            settings = load_settings()
            app = load_app(settings.app)
            apply(settings, app)
            typer.echo(f"DATABASE_URL='{database_url}'")
            typer.echo(f"REDIS_URL='{redis_url}'")
            typer.echo("Put `export` before each, and worker enqueue works in another shell. Ctrl-C ends it all.")
            _work(app, settings)
    except EmbeddedServerError as error:
        raise Refusal(str(error)) from error


@contextmanager
def _servers() -> Generator[tuple[str, str]]:
    try:
        FOLDER.mkdir(exist_ok=True)
    except OSError as error:  # no right to write here, or a file of that name
        raise Refusal(f"{FOLDER.absolute()} can't be made ({error.strerror}); go to a folder of your own.") from error
    with EmbeddedPostgres(FOLDER / "postgres") as postgres, EmbeddedValkey(FOLDER / "valkey") as valkey:
        yield postgres.url, valkey.url


def _work(app: App, settings: Settings) -> None:
    event_loop.run(consume(app, settings, start_reporting(settings, app.schedule)))
