"""A handler that doesn't fit its job is an error of mypy and of pyright, before anything runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SNIPPET = """
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from worker.chunk import Chunk, Step
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.job import Job


class PayOrder(Job, name="orders.pay"):
    order_id: int


class CancelOrder(Job, name="orders.cancel"):
    order_id: int


async def pay_order(job: PayOrder, session: AsyncSession) -> Mapping[str, int]:
    return {"order_id": job.order_id}


async def cancel_order(job: CancelOrder, session: AsyncSession) -> None: ...


async def pay_all(job: PayOrder, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    return chunk.step(None)


async def pay_many(jobs: Sequence[PayOrder], session: AsyncSession) -> None: ...


async def pay_many_with_results(jobs: Sequence[PayOrder], session: AsyncSession) -> list[dict[str, int]]:
    return [{"order_id": job.order_id} for job in jobs]


async def pay_many_with_one_result(jobs: Sequence[PayOrder], session: AsyncSession) -> int:
    return len(jobs)


HANDLERS = (
    Handler(PayOrder, pay_order),
    ChunkedHandler(PayOrder, pay_all, cursor=int),
    BatchHandler(PayOrder, pay_many),
    BatchHandler(PayOrder, pay_many_with_results, max_size=50),
    Handler(PayOrder, cancel_order),  # an error
    ChunkedHandler(CancelOrder, pay_all, cursor=int),  # an error
    ChunkedHandler(PayOrder, pay_all, cursor=str),  # an error
    Handler(PayOrder, pay_all),  # an error
    BatchHandler(CancelOrder, pay_many),  # an error
    BatchHandler(PayOrder, pay_order),  # an error
    BatchHandler(PayOrder, pay_many_with_one_result),  # an error
    Handler(PayOrder, pay_many),  # an error
)
PayOrder(order_id="seven")  # an error
"""
WRONG = [number for number, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# an error")]


@pytest.fixture
def snippet(tmp_path: Path) -> Path:
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    return path


def test_a_handler_that_doesnt_fit_its_job_is_an_error_of_mypy(snippet: Path) -> None:
    command = [str(BIN / "mypy"), "--output", "json", str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted({each["line"] for each in told if each["severity"] == "error"}) == WRONG, done.stdout + done.stderr


def test_a_handler_that_doesnt_fit_its_job_is_an_error_of_pyright(snippet: Path) -> None:
    command = [str(BIN / "pyright"), "--outputjson", "--pythonpath", sys.executable, str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    told = json.loads(done.stdout)["generalDiagnostics"]
    lines = {each["range"]["start"]["line"] + 1 for each in told if each["severity"] == "error"}
    assert sorted(lines) == WRONG, done.stdout
