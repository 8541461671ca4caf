"""worker schema: the contract of every job, for producers in any language."""

import os

from worker.app import App
from worker.cli.loading import load_app
from worker.cli.output import print_json
from worker.settings import Settings


def schema() -> None:
    """Print the JSON Schema of every job's payload, by job name; a renamed job is there under its old names too.

    Needs no server and no setting but WORKER_APP.
    """
    default: str = Settings.model_fields["app"].default
    print_json(schemas(load_app(os.environ.get("WORKER_APP") or default)))


def schemas(app: App) -> dict[str, object]:
    """By name, and alias."""
    return {name: handler.job.model_json_schema(mode="validation") for name, handler in sorted(app.handlers.items())}
