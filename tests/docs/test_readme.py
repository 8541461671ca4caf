"""The README as a new user goes through it: paste the file, run the commands, read the answer."""

import asyncio
import json
import os
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.guide.test_01_enqueue import FROM_SQL

PROMPTLY = 60.0  # s, for any one step


@pytest.fixture
def folder() -> Iterator[Path]:
    """A checkout with nothing of the reader's in it. PostgreSQL's user must be able to enter it."""
    folder = Path(tempfile.mkdtemp(prefix="ratchet-readme-"))
    folder.chmod(0o755)
    for name in (".venv", "Makefile", "pyproject.toml", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    yield folder
    shutil.rmtree(folder)


async def test_a_job_of_ones_own_runs_on_a_worker(folder: Path) -> None:
    [program] = [block for block in blocks("python") if "app = App(" in block.text and block.file == "README.md"]
    dev, enqueue = (block.text for block in blocks("sh run"))
    [answer] = blocks("json")
    (folder / "hello.py").write_text(program.text)
    async with shell(recipe(folder, dev), folder) as first:
        urls = dict([await value_of("DATABASE_URL", first), await value_of("REDIS_URL", first)])
        for name, value in urls.items():
            enqueue = enqueue.replace(f"{name}='…'", f"{name}='{value}'")
        async with shell(enqueue, folder) as second:
            told = await rest_of(second)
        assert second.returncode == 0, told
    expected = json.loads(answer.text)
    result = json.loads(told.splitlines()[-1])
    assert result == {**expected, "at": result["at"]}
    assert len(program.text.split("\n\n\n")) == 4  # imports, job, handler, app: ten lines
    assert sum(1 for line in program.text.splitlines() if line) == 10


def test_the_sql_is_the_guides(folder: Path) -> None:
    [sql] = [block for block in blocks("sql") if block.file == "README.md"]
    assert sql.text == FROM_SQL.lstrip()


def recipe(folder: Path, command: str) -> str:
    """`command` with `make dev` put as what make would run: it would first bring .venv up to date, from the network."""
    made = os.popen(f"make -C {folder} --no-print-directory -n -o .venv/.ready dev").read().strip()
    assert made.startswith(".venv/bin/worker dev")
    return command.replace("make dev", made)
