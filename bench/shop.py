"""The shop of jobs/ in the bench's database, with a worker that runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import ROOT, ContenderError
from bench.servers import Servers
from jobs.app import MIGRATIONS
from worker.migrate import migrate

LOOK_EVERY_S = 0.002
TIMEOUT_S = 120.0
STATUS = "select status from worker.run where id = $1"
FINAL = ("completed", "dead", "cancelled", "discarded")


@contextmanager
def open_shop(servers: Servers) -> Generator[Path]:
    """A fresh database with the shop's tables, and a worker; gives the folder of its files."""
    servers.fresh()
    migrate(servers.database_url, [MIGRATIONS])
    folder = servers.folder / "shop"
    folder.mkdir(exist_ok=True)
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "WORKER_APP": "bench.bulk_app:app",
        "WORKER_FILES_DIR": str(folder),
        "WORKER_LOG_LEVEL": "warning",
    }
    command = [str(Path(sys.executable).with_name("worker")), "run"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield folder
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def importing(servers: Servers, path: str) -> float:
    """Seconds from the commit that enqueues `users.import` to the one that completes it."""
    job_id = enqueue(servers, "users.import", path=path)
    began = time.monotonic()
    wait_for(servers, job_id)
    return time.monotonic() - began


def enqueue(servers: Servers, name: str, **payload: object) -> str:
    """Returns the job's id."""
    return str(servers.value("select worker.enqueue($1, $2)", given=(name, json.dumps(payload))))


def wait_for(servers: Servers, job_id: str) -> None:
    """Raises ContenderError where the job doesn't complete."""
    deadline = time.monotonic() + TIMEOUT_S
    while (status := servers.value(STATUS, given=(job_id,))) not in FINAL:
        if time.monotonic() > deadline:
            raise ContenderError(f"the job {job_id} was {status} after {TIMEOUT_S:g} s")
        time.sleep(LOOK_EVERY_S)
    if status != "completed":
        raise ContenderError(f"the job {job_id} is {status}")
