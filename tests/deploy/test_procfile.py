"""The Procfile, run for real: honcho starts its processes against the embedded servers, as a platform would."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.files import BIN, ROOT
from worker.dev import EmbeddedPostgres
from worker.settings import Settings

DATABASE = "deploy"
PATIENCE = 60  # s


@pytest.fixture
def environment(postgres: EmbeddedPostgres, redis_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give what a platform gives: an empty database, an empty Redis, and `worker` on the PATH."""
    postgres.psql(f"CREATE DATABASE {DATABASE}")
    yield {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "DATABASE_URL": postgres.database_url(DATABASE),
        "REDIS_URL": redis_url,
        "WORKER_FILES_DIR": str(tmp_path),
    }
    postgres.psql(f"DROP DATABASE {DATABASE} WITH (FORCE)")


@contextmanager
def honcho(process: str, environment: Mapping[str, str], log: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run `honcho start PROCESS` with the Procfile as it is, and no .env; its output goes to `log`."""
    command = [str(BIN / "honcho"), "--env", os.devnull, "start", process]
    with log.open("wb") as output:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield started
        finally:
            # After a failure: what it started has sessions of its own. When that is gone, honcho ends by itself.
            if started.poll() is None:
                for pid in re.findall(r"started \(pid=(\d+)\)", log.read_text()):
                    os.killpg(int(pid), signal.SIGKILL)
                started.wait(PATIENCE)


def worker(environment: Mapping[str, str], *args: str) -> str:
    """Run a `worker` command, which must end with 0, and return what it printed."""
    command = [str(BIN / "worker"), *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_release_migrates_then_the_worker_works_until_sigterm(
    environment: dict[str, str], postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    log = tmp_path / "honcho.log"

    with honcho("release", environment, log) as release:
        assert release.wait(PATIENCE) == 0, log.read_text()
    assert postgres.psql("SELECT count(*) FROM public.users", database=DATABASE) == "0"

    with honcho("worker", environment, log) as running:
        job = json.dumps({"email": "ada@example.org", "name": "Ada"})
        printed = worker(environment, "enqueue", "users.create", "--json", job, "--wait", "--timeout", str(PATIENCE))
        assert json.loads(printed.splitlines()[-1])["user_id"]
        assert postgres.psql("SELECT name FROM public.users", database=DATABASE) == "Ada"
        worker(environment, "status", "--check")

        [alive] = json.loads(worker(environment, "status", "--json"))["workers"]
        os.kill(alive["pid"], signal.SIGTERM)
        grace: float = Settings.model_fields["shutdown_grace"].default
        assert running.wait(grace + PATIENCE) == 0, log.read_text()
