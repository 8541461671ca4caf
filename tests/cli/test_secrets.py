"""Secrets are planted in URLs, payloads and errors: what commands print and a worker logs is searched for them."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import Result

from tests.cli.conftest import Command, run_command
from tests.cli.secretive import PAYLOAD, TOLD
from tests.conftest import StartWorker

PASSWORD = "password-hunter2"
APP = "tests.cli.secretive:app"
GOOD = json.dumps({"secret": PAYLOAD})


def with_login(url: str, user: str, database: str | None = None) -> str:
    """The same server, with a password. Both let these users in whatever it is."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path if database is None else f"/{database}"
    return parts._replace(netloc=f"{user}:{PASSWORD}@{host}", path=path).geturl()


@pytest.fixture
def env(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": with_login(database_url, "postgres"),
        "REDIS_URL": with_login(redis_url, "default"),
        "WORKER_APP": APP,
        "WORKER_LOG_LEVEL": "debug",
    }


async def ask(command: Command, *args: str, **options: Any) -> Result:
    """A command has an event loop of its own."""
    return await asyncio.to_thread(command, *args, **options)


async def test_no_worker_logs_a_password_a_payload_or_a_handlers_words(
    start_worker: StartWorker, command: Command, env: dict[str, str]
) -> None:
    for name in ("secret.keep", "secret.tell", "secret.ask"):
        await ask(command, "enqueue", name, "--json", GOOD, "--job-id", name, **env)
    for log_format in ("json", "console"):
        worker = await start_worker("run", "--burst", **{**env, "WORKER_LOG_FORMAT": log_format})
        assert await worker.wait() == 0, worker.output
        for secret in (PASSWORD, PAYLOAD, TOLD):
            assert secret not in worker.output
        await ask(command, "enqueue", "secret.tell", "--json", GOOD, **env)
    refused = await start_worker("run", **{**env, "REDIS_URL": with_login(env["REDIS_URL"], "nobody")})
    assert await refused.wait() == 3
    assert PASSWORD not in refused.output


async def test_no_command_tells_a_password_or_a_payload(
    start_worker: StartWorker, command: Command, env: dict[str, str]
) -> None:
    for name in ("secret.keep", "secret.tell"):
        await ask(command, "enqueue", name, "--json", GOOD, "--job-id", name, **env)
    commands = [
        ("runs",),
        ("runs", "--json"),
        ("show", "secret.keep"),
        ("show", "--debug", "secret.tell"),  # --debug, since it shows a traceback: the job's own
        ("show", "--debug", "secret.tell", "--json"),
        ("status",),
        ("status", "--json"),
        ("doctor",),
        ("schema",),
    ]
    before = [(await ask(command, *args, **env)).output for args in commands]
    worker = await start_worker("run", "--burst", **env)
    assert await worker.wait() == 0, worker.output
    after = [(await ask(command, *args, **env)).output for args in commands]
    refused = await ask(command, "show", "secret.tell", "--payload", exit_code=2, **env)
    for told in (*before, *after, refused.output):
        assert PASSWORD not in told
        assert PAYLOAD not in told
    # The rule of `worker show`: its errors are a handler's own words. Payloads want the setting.
    assert TOLD in (await ask(command, "show", "--debug", "secret.tell", **env)).output
    allowed = await ask(command, "show", "--debug", "secret.tell", "--payload", **env, WORKER_SHOW_PAYLOADS="true")
    assert PAYLOAD in allowed.output


def test_no_refusal_tells_one_either(command: Command, env: dict[str, str]) -> None:
    bad = ("enqueue", "secret.keep", "--json")
    told = [
        command(*bad, json.dumps({"secret": [PAYLOAD]}), exit_code=2, **env),
        command(*bad, f'{{"secret": {PAYLOAD}', exit_code=2, **env),
        command(*bad, json.dumps(PAYLOAD), exit_code=2, **env),
    ]
    for broken in (
        {"DATABASE_URL": with_login(env["DATABASE_URL"], "postgres", "nothing")},
        {"DATABASE_URL": with_login(env["DATABASE_URL"], "nobody")},
        {"REDIS_URL": with_login(env["REDIS_URL"], "nobody")},
    ):
        for args in (("status",), ("status", "--debug"), ("doctor",), ("doctor", "--debug")):
            result = run_command(*args, exit_code=3 if args[0] == "status" else 1, **{**env, **broken})
            told.append(result)
    for result in told:
        assert PASSWORD not in result.output
        assert PAYLOAD not in result.output


@pytest.mark.parametrize("url", ["postgresql://u:{}/x@127.0.0.1:1/x", "postgresql://u:1?{}@127.0.0.1:1/x"])
def test_nor_does_the_traceback_of_a_url_that_can_t_be_read(url: str, command: Command) -> None:
    told = command("status", "--debug", exit_code=2, DATABASE_URL=url.format(PASSWORD)).output
    assert "SettingsError" in told
    assert PASSWORD not in told
