"""A terminal that is too narrow for a table: nothing is cut off, and ids can be copied."""

import os
import pty
from collections.abc import Callable, Sequence
from subprocess import Popen
from typing import Any

import pytest

from tests.cli.conftest import APP
from tests.support.processes import WORKER

JOB_ID = "0198c5f2-7d4a-7000-8000-0123456789ab"


def on_terminal(columns: int, *args: str, **env: str) -> list[str]:
    """Run `worker ARGS…` on a terminal that is so wide; returns its lines."""
    terminal, side = pty.openpty()
    given = {**os.environ, **env, "WORKER_APP": APP, "TERM": "dumb", "COLUMNS": str(columns)}
    with Popen((WORKER, *args), stdin=side, stdout=side, stderr=side, env=given):
        os.close(side)
        seen = b""
        try:
            while piece := os.read(terminal, 10_000):
                seen += piece
        except OSError:  # how Linux tells that the other side is closed
            pass
        os.close(terminal)
    return seen.decode().splitlines()


@pytest.mark.parametrize("columns", [40, 80])
def test_a_table_that_has_no_room_is_a_line_a_field(
    query: Callable[..., Sequence[Any]], database_url: str, redis_url: str, columns: int
) -> None:
    query(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt, error, finished_at) "
        "values ($1, 1, 'tests.count', 'arq:queue', 'dead', true, 5, 'Boom', '2026-01-02 03:04:05')",
        JOB_ID,
    )
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "TZ": "UTC"}
    assert on_terminal(columns, "runs", **servers) == [
        "status   dead",
        "job      tests.count",
        f"id       {JOB_ID}",
        "time     2026-01-02 03:04:05",
        "failures 5",
        "error    Boom",
    ]
    [head, _, row] = on_terminal(120, "runs", **servers)
    assert (head.split()[0], row.split()[:5:2]) == ("status", ["dead", "tests.count", JOB_ID])
