"""worker dev: servers and a worker from one command, for this shell and others."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

WORKER = str(Path(sys.executable).with_name("worker"))
PATIENCE_S = 90
JOB = '{"email": "ada@example.org", "name": "Ada"}'


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a directory that PostgreSQL's user may enter; pytest's own `tmp_path` is closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def session(folder: Path, *command: str) -> tuple[str, str]:
    """Run `worker dev`, and beside it `worker COMMAND…` with the URLs that it printed; both must end with 0."""
    environment = {"PATH": os.environ["PATH"], "WORKER_FILES_DIR": str(folder)}
    log = folder / "log"
    with log.open("w") as errors:
        dev = subprocess.Popen(
            [WORKER, "dev"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert dev.stdout is not None
        printed = "".join(dev.stdout.readline() for _ in range(3))
        urls = dict(re.findall(r"(\w+_URL)='(.+)'\n", printed))
        assert sorted(urls) == ["DATABASE_URL", "REDIS_URL"], log.read_text()
        done = subprocess.run(
            [WORKER, *command], cwd=folder, env={**environment, **urls},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + log.read_text()
        dev.send_signal(signal.SIGINT)
        dev.communicate(timeout=PATIENCE_S)
    finally:
        dev.kill()
        dev.communicate()
    assert dev.returncode == 0, log.read_text()
    return done.stdout, urls["DATABASE_URL"]


def test_dev_runs_jobs_until_ctrl_c_and_keeps_its_data(folder: Path) -> None:
    printed, url = session(folder, "enqueue", "users.create", "--json", JOB, "--wait")
    job_id, result = printed.splitlines()
    assert json.loads(result)["user_id"]
    assert not Path(url.partition("host=")[2]).exists()
    listed, _ = session(folder, "runs", "--json")
    [run] = map(json.loads, listed.splitlines())
    assert (run["id"], run["status"]) == (job_id, "completed")
    assert sorted(path.name for path in (folder / ".dev").iterdir()) == ["postgres", "valkey"]


def test_a_folder_that_takes_no_data_is_a_sentence(folder: Path) -> None:
    (folder / ".dev").touch()
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run([WORKER, "dev"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    told = f"Error: {folder / '.dev'} can't be made (File exists); go to a folder of your own.\n"
    assert (done.returncode, done.stderr) == (1, told)
