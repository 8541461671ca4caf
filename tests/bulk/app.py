"""users.import in small chunks, so that few rows make many: `WORKER_APP=tests.bulk.app:app`."""

from functools import partial

from jobs.app import files
from jobs.csv_input import Position
from jobs.users.contracts import ImportUsers
from jobs.users.imports import import_users
from worker.app import App
from worker.handler import ChunkedHandler

ROWS_A_CHUNK = 1_000

app = App(
    handlers=[
        ChunkedHandler(
            ImportUsers, partial(import_users, files=files()), cursor=Position, size=ROWS_A_CHUNK, max_size=ROWS_A_CHUNK
        )
    ]
)
