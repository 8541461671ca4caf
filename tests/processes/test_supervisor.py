"""The supervisor alone, with children that do nothing but end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.waiting import wait_until
from worker import supervisor
from worker.cli import endings
from worker.cli.endings import AWAY, WRONG
from worker.event_loop import loop_factory
from worker.supervisor import ADDED, FAILED, IN_ORDER, REFUSALS, Plan, Supervisor

PATIENCE_S = 20


def counting(folder: Path, then: str) -> list[str]:
    """Write a byte for each start, then do this; `n` is the number of the start, from 1, and no other's."""
    file = f"os.open({str(folder / 'starts')!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)"
    count = f"file = {file}; os.write(file, b'x'); n = os.lseek(file, 0, os.SEEK_CUR)"
    return [sys.executable, "-c", f"import os, signal, sys, time; {count}; {then}"]


async def supervise(plan: Plan) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await Supervisor(plan).run()


async def test_who_dies_is_started_again_later_and_later(tmp_path: Path) -> None:
    command = counting(tmp_path, "sys.exit(70 if n < 5 else 202)")
    with capture_logs() as logged:
        assert await supervise(Plan(command, processes=1, grace_s=1)) == 2
    died = [line for line in logged if line["event"] == "process_died"]
    assert [line["code"] for line in died] == [70] * 4
    for n, line in enumerate(died):
        assert 0 <= line["restart_in_s"] <= 0.1 * 2**n


async def test_one_that_ends_at_once_is_no_recycled_one_whatever_its_code(tmp_path: Path) -> None:
    command = counting(tmp_path, f"sys.exit({IN_ORDER} if n < 4 else 202)")
    with capture_logs() as logged:
        assert await supervise(Plan(command, processes=1, grace_s=1)) == 2
    assert [line["code"] for line in logged if line["event"] == "process_died"] == [IN_ORDER] * 3


async def test_a_zero_that_is_no_word_of_the_workers_is_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may end its process with 0, and with it all that ran beside it."""
    monkeypatch.setattr(supervisor, "BRIEF_S", 0.0)
    command = counting(tmp_path, f"sys.exit([0, {IN_ORDER}, 202][n - 1])")
    with capture_logs() as logged:
        assert await supervise(Plan(command, processes=1, grace_s=1)) == 2
    ended = [line["event"] for line in logged if line["event"] != "process_started"]
    assert ended == ["process_died", "process_recycled", "process_refused"]


@pytest.mark.parametrize(("code", "told"), [(0, FAILED), (IN_ORDER, 0)])
async def test_a_burst_has_succeeded_where_its_processes_say_so(tmp_path: Path, code: int, told: int) -> None:
    plan = Plan(counting(tmp_path, f"sys.exit({code})"), processes=2, grace_s=1, burst=True)
    assert await supervise(plan) == told


async def test_backoff_is_forgotten_by_one_that_lived_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a refusal is no reason to end all then: it may have passed."""
    command = counting(tmp_path, "sys.exit(203) if n < 12 else os.kill(os.getppid(), signal.SIGTERM) or time.sleep(60)")
    monkeypatch.setattr(supervisor, "STEADY_S", 0.0)
    with capture_logs() as logged:
        assert await supervise(Plan(command, processes=1, grace_s=1)) == 0
    delays = [line["restart_in_s"] for line in logged if line["event"] == "process_died"]
    assert len(delays) == 11
    assert max(delays) <= 0.1


async def test_a_refusal_ends_no_others_that_have_lived_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are right then, and a server that refuses one (a password is being changed) may have it back."""
    monkeypatch.setattr(supervisor, "STEADY_S", 1.0)
    stop = "os.kill(os.getppid(), signal.SIGTERM)"
    then = f"time.sleep(60 if n == 1 else 2 * (n == 2)); n < 5 or {stop} or time.sleep(60); sys.exit(203)"
    with capture_logs() as logged:
        assert await supervise(Plan(counting(tmp_path, then), processes=2, grace_s=1)) == 0
    assert [line["code"] for line in logged if line["event"] == "process_died"] == [203] * 3


async def test_one_that_outlives_its_grace_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "KILL_AFTER_S", 0.1)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    with capture_logs() as logged:
        code = await supervise(Plan(counting(tmp_path, deaf), processes=1, grace_s=0.1))
    assert code == 128 + signal.SIGKILL
    assert [line["event"] for line in logged] == ["process_started", "supervisor_stopping", "process_killed"]


async def test_what_cannot_be_started_is_tried_again() -> None:
    with capture_logs() as logged:
        running = asyncio.create_task(supervise(Plan(["/nowhere/python"], processes=1, grace_s=1)))

        async def were_tried() -> bool:
            return len([line for line in logged if line["event"] == "process_not_started"]) >= 3

        await wait_until(were_tried)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 0


async def test_no_child_holds_the_end_of_the_pipe_that_keeps_the_others_alive() -> None:
    """Each child looks through its descriptors: it has the lifeline's read end and nothing else beyond 2."""
    look = "[fd for fd in range(3, 256) if os.path.exists(f'/dev/fd/{fd}')] == [int(sys.argv[2])]"
    command = [sys.executable, "-c", f"import os, sys; sys.exit({IN_ORDER} * ({look} and sys.argv[3:] == ['--', 'x']))"]
    assert await supervise(Plan(command, processes=3, grace_s=1, arguments=["--", "x"], burst=True)) == 0


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert supervisor._how(-signal.SIGKILL) == {"signal": "SIGKILL"}
    assert supervisor._how(-50) == {"signal": 50}


def test_its_refusals_are_the_commands() -> None:
    assert (ADDED + WRONG, ADDED + AWAY) == REFUSALS
    assert endings.FAILED == FAILED


@pytest.mark.parametrize("installed", [True, False])
def test_a_worker_takes_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert type(runner.get_loop()).__module__.startswith("uvloop" if installed else "asyncio.")


def test_it_loads_nothing_of_what_a_worker_needs() -> None:
    read = "import worker.supervisor, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"sqlalchemy", "asyncpg", "alembic", "arq", "redis", "sentry_sdk", "pydantic", "typer"})
