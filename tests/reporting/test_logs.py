"""Where log lines go and how they look, whoever wrote them."""

import asyncio
import io
import json
import logging
import logging.config
import sys
import warnings
from typing import Any

import pytest
import structlog
from arq.logs import default_log_config

from tests.reporting.conftest import settings_with
from tests.reporting.subjects import raised
from worker.database import RuntimePool
from worker.reporting.logs import configure


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to what a command prints"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_json_is_one_object_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    structlog.get_logger("worker.relay").info("sent", rows=3)
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "sent", "level": "info", "logger": "worker.relay", "rows": 3}


def test_a_line_begins_with_when_what_and_of_which_job(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    with structlog.contextvars.bound_contextvars(trace_id="t", attempt=1, queue="q", job_id="1", job="orders.pay"):
        structlog.get_logger("shop").info("asked", provider="bank")
    [line] = lines(capsys)
    head = ["timestamp", "level", "event", "job", "job_id", "queue", "attempt", "trace_id"]
    assert list(line) == [*head, "provider", "logger"]


def test_lines_of_the_standard_library_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    logging.getLogger("shop.gateway").warning("declined %s", "twice", extra={"order_id": 7})
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "declined twice", "level": "warning", "logger": "shop.gateway", "order_id": 7}


def test_the_console_is_plain_text_without_colours_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(settings_with(log_format="console"))
    structlog.get_logger("worker.relay").info("sent", rows=3)
    logging.getLogger("shop").info("hello")
    first, second = capsys.readouterr().err.splitlines()
    assert first.split(maxsplit=1)[1] == "[info     ] sent [worker.relay] rows=3"
    assert second.split(maxsplit=1)[1] == "[info     ] hello [shop]"


def test_the_console_has_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure(settings_with(log_format="console"))
    structlog.get_logger().info("sent")
    assert "\x1b[" in terminal.getvalue()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_value_breaks_a_line_or_steers_the_terminal(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_format=log_format))
    structlog.get_logger().info("completed", job_id="a\nlevel=error\x1b[2J\ud800")
    logging.getLogger("shop").info("first\nsecond\x1b[2J")
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert "\x1b" not in written


def test_on_the_console_what_stands_beside_a_newline_stays_readable(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_format="console"))
    logging.getLogger("shop").info("первый\nc:\\второй\x1b[2J")
    assert "первый\\nc:\\второй\\x1b[2J" in capsys.readouterr().err


def test_the_level_filters_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_level="warning"))
    structlog.get_logger().info("unseen")
    logging.getLogger("shop").info("unseen")
    structlog.get_logger().warning("seen")
    logging.getLogger("shop").warning("seen")
    assert [line["event"] for line in lines(capsys)] == ["seen", "seen"]


@pytest.mark.parametrize("library", ["arq.worker", "sqlalchemy.engine.Engine", "asyncio", "urllib3.connectionpool"])
def test_libraries_that_quote_data_are_quiet_even_at_debug(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_level="debug"))
    logging.getLogger(library).info("users.create(email='ann@example.org')")
    logging.getLogger(library).error("something is wrong")
    assert [line["event"] for line in lines(capsys)] == ["something is wrong"]


def test_a_connection_whose_closing_is_cancelled_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    pool = logging.getLogger(RuntimePool.__module__ + "." + RuntimePool.__name__)
    for error in (asyncio.CancelledError(), OSError("gone")):
        pool.error("Exception closing connection", exc_info=error)
    [line] = lines(capsys)
    assert (line["level"], "OSError" in line["exception"]) == ("error", True)


def test_alembic_says_what_it_migrates(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    logging.getLogger("alembic.runtime.migration").info("Running upgrade")
    assert [line["event"] for line in lines(capsys)] == ["Running upgrade"]


def test_warnings_of_python_become_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure(settings_with())
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        [line] = lines(capsys)
    assert line["logger"] == "py.warnings"


def test_a_traceback_shows_types_and_frames_but_no_error_s_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    cause, group, member = (f"{who}@example.org" for who in ("cause", "group", "member"))
    noted = ValueError(member)
    noted.add_note(member)
    failed = ExceptionGroup(group, [noted])
    failed.__cause__ = raised(KeyError(cause))
    structlog.get_logger().error("fault", exc_info=failed)
    try:
        raise failed
    except ExceptionGroup:
        structlog.get_logger().exception("fault")
        logging.getLogger("shop").exception("fault")
    for line in lines(capsys):
        assert "builtins.ValueError" in line["exception"]
        assert "builtins.ExceptionGroup" in line["exception"]
        assert "raise error" in line["exception"], "source lines are shown"
        assert "@example.org" not in json.dumps(line)


def test_a_traceback_has_its_texts_where_payloads_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_payloads=True))
    logging.getLogger("shop").error("fault", exc_info=raised(ValueError("ann@example.org")))
    assert "ValueError: ann@example.org" in lines(capsys)[0]["exception"]


def test_an_error_s_text_steers_no_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with(log_format="console", log_payloads=True))
    structlog.get_logger().error("fault", exc_info=raised(ValueError("a\x1b[2J\x9b2J\rb")))
    written = capsys.readouterr().err
    assert "ValueError: a\\x1b[2J\\x9b2J\\rb" in written
    assert written.replace("\n", "").isprintable()


def test_the_stock_arq_command_writes_no_line_twice_and_no_error_s_text(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(default_log_config(verbose=False))
    configure(settings_with())
    arq = logging.getLogger("arq.worker")
    arq.info("%6.2fs → %s(%s)%s", 0.1, "1:users.create", "email='ann@example.org'", "")
    arq.error("%6.2fs ! %s failed, %s: %s", 0.1, "1:users.create", "JobFailed", ValueError("ann@example.org"))
    assert [line["event"] for line in lines(capsys)] == ["  0.10s ! 1:users.create failed, JobFailed: ValueError"]


def test_errors_that_cause_each_other_for_ever_still_end(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    structlog.get_logger().error("fault", exc_info=one)
    assert "KeyError" in lines(capsys)[0]["exception"]


def test_a_line_that_can_t_be_written_is_lost_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    configure(settings_with())
    closed.close()
    structlog.get_logger().error("unseen")


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(settings_with())
    configure(settings_with())
    logging.getLogger("shop").info("once")
    assert len(lines(capsys)) == 1
