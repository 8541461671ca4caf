"""How the SDK is set up: what it must not do by itself."""

import json
import logging
import os
import socket
import subprocess
import sys

import pytest
import sentry_sdk
from arq.connections import ArqRedis

from tests.reporting.conftest import StartReporting, settings_with
from tests.reporting.envelopes import SentryServer
from tests.reporting.subjects import attempt, raised
from worker.outcome import Completed, Dead
from worker.reporting.start import start_reporting
from worker.settings import SettingsError

DIES = """
import sys
from worker.outcome import Dead
from worker.reporting.observer import Subject
from worker.reporting.start import start_reporting
from worker.settings import load_settings

observers = start_reporting(load_settings())
with observers.observe(Subject("1", "orders.pay", "arq:queue", 0, 0)) as observation:
    observation.begun(1)
    observation.ended(Dead("ValueError: no"), ValueError("no"))
print("done")
"""


def test_arq_s_own_integration_is_off(start: StartReporting) -> None:
    before = ArqRedis.enqueue_job
    start()
    assert sentry_sdk.get_client().get_integration("arq") is None
    assert ArqRedis.enqueue_job is before, "the SDK patched arq"


def test_only_what_is_named_is_on(start: StartReporting) -> None:
    start()
    assert set(sentry_sdk.get_client().integrations) == {"atexit", "modules", "sqlalchemy"}


def test_a_logged_error_is_no_event(start: StartReporting, sentry: SentryServer) -> None:
    observers = start()
    attempt(observers, Completed())
    logging.getLogger("shop").error("declined")
    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=raised(ValueError()))
    assert len(sentry.transactions()) == 1
    assert sentry.events() == []


def test_without_a_dsn_nothing_is_started_and_jobs_are_only_logged(capsys: pytest.CaptureFixture[str]) -> None:
    for dsn in (None, ""):
        observers = start_reporting(settings_with(sentry_dsn=dsn))
        attempt(observers, Completed())
        observers.fault("relay", raised(KeyError()))
    assert not sentry_sdk.get_client().is_active()
    assert capsys.readouterr().err.count("\n") == 4


@pytest.mark.parametrize(
    "dsn",
    [
        "sentry",
        "https://sentry.example.org/1",
        "ftp://key@sentry.example.org/1",
        "https://key@sentry.example.org:port/1",
        "https://key@[sentry/1",
    ],
)
def test_a_dsn_that_is_none_is_a_sentence_without_it(dsn: str) -> None:
    with pytest.raises(SettingsError, match=r"^SENTRY_DSN can't be used: .*\.$") as caught:
        settings_with(sentry_dsn=dsn)
    assert dsn not in str(caught.value)


def test_a_sentry_that_is_away_costs_no_job_and_no_line(
    start: StartReporting, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dsn = f"http://key@127.0.0.1:{closed.getsockname()[1]}/1"
    observers = start(sentry_dsn=dsn)
    attempt(observers, Dead("ValueError: no"), raised(ValueError()))
    sentry_sdk.flush(timeout=10)
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["dead"]


def test_a_process_sends_what_is_pending_before_it_ends_and_says_nothing(sentry: SentryServer) -> None:
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nobody@localhost/none",
        "SENTRY_DSN": sentry.dsn,
        "WORKER_LOG_LEVEL": "error",
    }
    done = subprocess.run([sys.executable, "-c", DIES], env=environment, capture_output=True, text=True, check=True)
    assert len(sentry.events()) == 1
    assert len(sentry.transactions()) == 1
    assert done.stdout == "done\n"
    assert done.stderr.count("\n") == 1, done.stderr
