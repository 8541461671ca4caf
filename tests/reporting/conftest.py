"""Logs and Sentry are a process's own: each test sets them up, and leaves them as they were."""

import logging
from collections.abc import Iterator
from typing import Protocol

import pytest
import sentry_sdk
import structlog

from tests.reporting.envelopes import SentryServer, sentry_server
from worker.reporting.logs import HANDLER, QUIET
from worker.reporting.observer import Observer
from worker.reporting.start import start_reporting
from worker.schedule import Cron
from worker.settings import Settings, load_settings


class StartReporting(Protocol):
    def __call__(self, *, schedule: tuple[Cron, ...] = (), **settings: object) -> Observer:
        """Report to the test's Sentry, with JSON logs unless `settings` say otherwise."""
        ...


def settings_with(**settings: object) -> Settings:
    return load_settings(**{"database_url": "postgresql://nobody@localhost/none", "log_format": "json", **settings})


@pytest.fixture(autouse=True)
def logs_are_left_as_they_were() -> Iterator[None]:
    names = ("", *QUIET)
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(capture=False)
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if handler.get_name() != HANDLER]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with sentry_server() as server:
        yield server
        sentry_sdk.get_client().close()
        sentry_sdk.get_global_scope().set_client(None)


@pytest.fixture
def start(sentry: SentryServer) -> StartReporting:
    def start(*, schedule: tuple[Cron, ...] = (), **settings: object) -> Observer:
        sentry_sdk.get_client().close()
        observers = start_reporting(settings_with(**{"sentry_dsn": sentry.dsn, **settings}), schedule)
        monitor = sentry_sdk.get_client().monitor
        if monitor is not None:
            monitor.interval = 0.01  # its thread sleeps for so long before it sees that it should end
        return observers

    return start
