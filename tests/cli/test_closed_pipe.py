"""A reader that has seen enough, as `worker runs --json | head -1`, is no error and gets no word."""

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import APP, Command


def unread(*args: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run `worker ARGS…` with a standard output that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "worker", *args]
        return subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "args", [("runs",), ("runs", "--json"), ("status",), ("status", "--json"), ("doctor",), ("schema",), ("--help",)]
)
def test_a_command_whose_reader_is_gone_ends_quietly(
    command: Command, database_url: str, redis_url: str, args: tuple[str, ...]
) -> None:
    command("enqueue", "tests.fail")
    done = unread(*args, DATABASE_URL=database_url, REDIS_URL=redis_url, WORKER_APP=APP)
    assert (done.returncode, done.stderr) == (1, b"")
