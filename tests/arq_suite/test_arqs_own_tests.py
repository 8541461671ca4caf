"""arq's own tests, as its sdist holds them, run against our Worker. What differs stands in a table."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.arq_suite.differences import DIFFERENCES
from worker.dev import EmbeddedValkey

ROOT = Path(__file__).parents[2]
ARQ = ROOT / ".arq"
"""Made by make: an environment with the pytest that arq's tests were written for, and arq's sdist."""
STAGE = Path(__file__).parent / "stage"
OPTIONS = (
    *("-q", "--rootdir", ".", "-p", "no:cacheprovider", "-p", "worker_class"),
    *("-o", "asyncio_mode=auto", "-o", "timeout=10"),
    *("-W", "error", "-W", "ignore:Call to deprecated close:DeprecationWarning"),  # arq's own, with redis-py 5
)
STOCK, OURS = "arq.worker:Worker", "worker.consumer:Worker"
SKIPPED = {"tests/test_utils.py::test_redis_sentinel_failure", "tests/test_worker.py::test_cancel_error"}
"""By arq itself."""
TESTS = 172
AGAIN = 4
"""Times that what failed is tried again. A test that differs fails each time, and takes a second or two at each."""

Told = dict[str, tuple[str, str]]


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    """Give a server of their own: they flush it."""
    with EmbeddedValkey() as server:
        yield server


def failures(worker_class: str, server: EmbeddedValkey, directory: Path) -> dict[str, str]:
    """Those of arq's tests that fail with `worker_class`, and why.

    What fails runs again, alone, and counts if it fails each time: one of them allows a millisecond between a command
    and the next, whatever else the machine does meanwhile.
    """
    if not (ARQ / ".ready").exists():
        pytest.fail("arq's tests are not there; make them with: make .arq/.ready", pytrace=False)
    shutil.copytree(ARQ / "sdist" / "tests", directory / "tests")
    ended = run(worker_class, server, directory)
    assert {test for test, (outcome, _) in ended.items() if outcome == "skipped"} == SKIPPED
    assert len(ended) - len(SKIPPED) == TESTS
    failed = only_failed(ended)
    for _ in range(AGAIN):
        if failed:
            failed = only_failed(run(worker_class, server, directory, tuple(failed)))
    return failed


def only_failed(ended: Told) -> dict[str, str]:
    return {test: why for test, (outcome, why) in ended.items() if outcome == "failed"}


def run(worker_class: str, server: EmbeddedValkey, directory: Path, only: Sequence[str] = ()) -> Told:
    """How each test of arq's ended with `worker_class`."""
    told = directory / "told.json"
    told.unlink(missing_ok=True)
    own = ("--worker-class", worker_class, "--told", told)
    done = subprocess.run(
        [ARQ / "venv" / "bin" / "python", "-m", "pytest", *OPTIONS, *own, *only],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "REDIS_URL": server.url, "PYTHONPATH": f"{STAGE}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert told.exists(), done.stdout + done.stderr
    ended: Told = json.loads(told.read_text())
    return ended


def test_the_stock_worker_passes_them_all(server: EmbeddedValkey, tmp_path: Path) -> None:
    """What fails with ours is ours, then."""
    assert failures(STOCK, server, tmp_path) == {}


def test_ours_passes_them_but_for_what_the_design_promises(server: EmbeddedValkey, tmp_path: Path) -> None:
    failed = failures(OURS, server, tmp_path)
    unexpected = {test: why for test, why in failed.items() if test not in DIFFERENCES}
    assert not unexpected, "\n\n".join(f"{test}\n{why}" for test, why in unexpected.items())
    assert failed.keys() == DIFFERENCES.keys(), "These pass, so they differ no more; take them out of the table."
