"""A plugin of pytest that puts PgBouncer between the tests and their PostgreSQL: `-p tests.support.through_pgbouncer`.

Tests reach their databases by `EmbeddedPostgres.database_url` and `create_engine`, so the two are exchanged, before any
test is imported. Templates are made past it, since a pooled connection to one would keep it from being copied.
"""

import os
from functools import partial
from typing import Any

import pytest

from tests.support import leaks
from tests.support.pgbouncer import PgBouncer
from worker import database, dev


class Bounced(dev.EmbeddedPostgres):
    """A PostgreSQL that is reached through a PgBouncer of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.bouncer = PgBouncer(self)
        self._is_up = False
        self._past_it = False

    def start(self) -> None:
        super().start()
        if not self._is_up:
            self.bouncer.start()
            self._is_up = True

    def close(self) -> None:
        self.bouncer.close()
        super().close()

    def database_url(self, database: str) -> str:
        if self._past_it or database.startswith("template"):
            return super().database_url(database)
        return self.bouncer.url(database)

    def psql(self, *statements: str, database: str = "postgres") -> str:
        self._past_it = True
        try:
            return super().psql(*statements, database=database)
        finally:
            self._past_it = False


def open_clients(postgres: Bounced, database: str) -> list[str]:
    """What `connection_leaks` says, of connections to the bouncer: those to the server are its own."""
    return leaks._settle(lambda: [f"a connection is still open: {line}" for line in postgres.bouncer.clients(database)])


DIFFERS = {
    "test_one_statement_begins_and_one_marks_it_done": "each BEGIN carries the lock timeout",
    "test_a_begin_that_nothing_followed_holds_nothing_else_back": "BEGIN is never held back",
    "test_a_role_without_pg_monitor_is_told_less_and_nothing_fails": "PgBouncer takes no role at the start",
    "test_a_setting_of_the_session_is_not_handed_on_to_the_next_job": "PgBouncer lends the server on with it",
    "test_a_temporary_table_is_not_handed_on_however_it_was_made": "PgBouncer lends the server on with it",
    "test_a_setting_of_the_transaction_costs_no_connection": "PgBouncer lends whichever server is free",
    "test_a_zombie_is_ended_though_the_statement_timeout_is_shorter_than_our_wait": "its servers were there before",
    "test_a_run_that_another_worker_holds_for_longer_than_it_counts_nothing": "its servers were there before",
    "test_a_handler_that_waits_for_something_else_has_its_own_timeout": "its servers were there before",
    "test_a_server_that_takes_no_writes_is_away": "its servers were there before",
    "test_a_statement_timeout_of_the_database_holds_for_handlers_that_have_none": "its servers were there before",
    "test_postgresql_that_refuses_us_is_told_without_the_password": "PgBouncer has one SQLSTATE for all it refuses",
}
"""Tests that can't hold behind PgBouncer, and why."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.name.partition("[")[0]
        if name in DIFFERS:
            item.add_marker(pytest.mark.skip(reason=DIFFERS[name]))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    os.environ["WORKER_PGBOUNCER"] = "true"  # for what tests start as a process
    database.create_engine = partial(database.create_engine, pgbouncer=True)
    dev.EmbeddedPostgres = Bounced  # type: ignore[misc]
    leaks.connection_leaks = open_clients  # type: ignore[assignment]
