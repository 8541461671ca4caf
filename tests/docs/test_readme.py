"""The README as a new user goes through it: paste the file, run the commands, read the answer."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks
from worker.dev import EmbeddedPostgres

PROMPTLY = 60  # s, for any one step
FROM_A_CHECKOUT = (".venv", "Makefile", "pyproject.toml", "requirements")

# Exactly these stand in the README.
[PROGRAM] = [block for block in blocks("python") if "Handler(Hello, hello)" in block.text]
[START, ENQUEUE, SERVE] = blocks("sh run")
[ANSWER] = [block for block in blocks("json") if "Hello" in block.text]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A checkout with hello.py in it. PostgreSQL's own user must be able to enter it."""
    folder = Path(tempfile.mkdtemp(prefix="ratchet-readme-"))
    folder.chmod(0o755)
    for name in FROM_A_CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    (folder / "hello.py").write_text(PROGRAM.text)
    yield folder
    shutil.rmtree(folder)


def test_the_job_has_ten_lines() -> None:
    assert sum(1 for line in PROGRAM.text.splitlines() if line) == 10


async def test_a_job_of_ones_own_runs_on_a_worker(folder: Path) -> None:
    async with shell(START.text.replace("make dev", recipe("dev", folder)), folder) as worker:
        urls = {name: await printed(worker, rf"{name}='(.+)'") for name in ("DATABASE_URL", "REDIS_URL")}
        await enqueue_and_wait(urls, folder)
        os.killpg(worker.pid, signal.SIGINT)  # Ctrl-C
    assert worker.returncode == 0


async def test_it_runs_on_servers_of_ones_own(folder: Path, postgres: EmbeddedPostgres, redis_url: str) -> None:
    postgres.psql("create database readme")
    urls = {"DATABASE_URL": postgres.database_url("readme"), "REDIS_URL": redis_url}
    variables = filled_in(ENQUEUE, urls).splitlines()[0]
    async with shell(f"{variables}\n{SERVE.text}", folder) as worker:
        await printed(worker, r"(Migrated) .*")
        await enqueue_and_wait(urls, folder)
        os.killpg(worker.pid, signal.SIGINT)
    assert worker.returncode == 0
    postgres.psql("drop database readme")


async def enqueue_and_wait(urls: dict[str, str], folder: Path) -> None:
    async with shell(filled_in(ENQUEUE, urls), folder) as second:
        result = json.loads(await printed(second, r"(\{.+\})"))
    assert second.returncode == 0
    assert result == {**json.loads(ANSWER.text), "at": result["at"]}


def recipe(target: str, folder: Path) -> str:
    """What `make TARGET` runs once .venv is up to date; here it is, and must not be made anew.

    Without the variables of a make that runs these tests.
    """
    make = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.ready", target]
    path = {"PATH": os.environ["PATH"]}
    return subprocess.run(make, cwd=folder, env=path, capture_output=True, text=True, check=True).stdout.strip()


def filled_in(block: Block, values: dict[str, str]) -> str:
    """The block with the reader's values in the place of its dots."""
    text = block.text
    for name, value in values.items():
        assert f"{name}='…'" in text
        text = text.replace(f"{name}='…'", f"{name}='{value}'")
    return text


@asynccontextmanager
async def shell(script: str, folder: Path) -> AsyncGenerator[Process]:
    """A shell that Ctrl-C doesn't end, without this process's environment; what it leaves running is ended."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-ec", f"trap true INT\n{script}"),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )
    try:
        yield process
        await asyncio.wait_for(process.wait(), PROMPTLY)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)  # in order: embedded servers remove their files
            await process.wait()


async def printed(process: Process, pattern: str) -> str:
    """The group of `pattern` in the next line that matches it. Fails with what was printed if none does."""
    assert process.stdout is not None
    seen = ""
    async with asyncio.timeout(PROMPTLY):
        async for line in process.stdout:
            seen += line.decode()
            match = re.fullmatch(pattern, line.decode().strip())
            if match:
                return match[1]
    raise AssertionError(f"no line matches {pattern}:\n{seen}")
