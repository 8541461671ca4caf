"""The composition root: handlers with their gateways, and the schedule. The one place that puts things together."""

import os
from datetime import timedelta
from functools import partial
from pathlib import Path

from jobs.csv_input import Position
from jobs.files import Files
from jobs.orders import handlers as orders
from jobs.orders.contracts import CancelStale, ImportOrders
from jobs.orders.imports import import_orders
from jobs.sales import handlers as sales
from jobs.sales.contracts import RefreshDaily
from jobs.users import handlers as users
from jobs.users.contracts import DeactivateDormant, ExportUsers, ImportUsers
from jobs.users.export import export_users
from jobs.users.imports import import_users
from worker import prune
from worker.app import App
from worker.file_urls import read_prefixes
from worker.handler import AnyHandler, ChunkedHandler, Handler
from worker.prune import Prune
from worker.schedule import Cron
from worker.stock import worker_settings

ROWS_A_CHUNK = 10_000
"""Of an import, at most: its memory grows with it."""
MIGRATIONS = Path(__file__).parent / "migrations" / "versions"

SCHEDULE = (
    Cron(RefreshDaily(), "0 1 * * *"),
    Cron(DeactivateDormant(dormant_for=timedelta(days=180)), "30 3 * * *"),
    Cron(CancelStale(older_than=timedelta(days=30)), "0 4 * * *"),
    Cron(Prune(keep_for=timedelta(days=30)), "30 4 * * *"),
)


def handlers(files: Files) -> tuple[AnyHandler, ...]:
    """All handlers of the domain, with `files` for those that need files."""
    return (
        *users.HANDLERS,
        *orders.HANDLERS,
        *sales.HANDLERS,
        ChunkedHandler(
            ImportUsers, partial(import_users, files=files), cursor=Position, size=ROWS_A_CHUNK, max_size=ROWS_A_CHUNK
        ),
        ChunkedHandler(
            ImportOrders, partial(import_orders, files=files), cursor=Position, size=ROWS_A_CHUNK, max_size=ROWS_A_CHUNK
        ),
        Handler(ExportUsers, partial(export_users, files=files), timeout=timedelta(hours=1)),
    )


def files() -> Files:
    """The folder and the URLs of the environment, and what a packed file may hold; as `worker.settings` reads them."""
    urls = read_prefixes(os.environ.get("WORKER_FILES_URLS") or "")
    unpacked_mb = int(os.environ.get("WORKER_FILES_MAX_UNPACKED_MB") or 10_240)
    return Files(Path(os.environ.get("WORKER_FILES_DIR") or "files"), urls, unpacked_mb * 1024**2)


app = App(
    handlers=(*handlers(files()), *prune.handlers()),
    schedule=SCHEDULE,
    migrations=(MIGRATIONS,),
    demo="jobs.demo:main",
)

# For the stock command: arq jobs.app.WorkerSettings
WorkerSettings = worker_settings(app)
