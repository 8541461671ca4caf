"""A migration of the domain that fails: the command says which one and why, without what PostgreSQL quotes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.cli.conftest import Command
from worker.dev import EmbeddedPostgres

APP = """
from pathlib import Path
from worker.app import App
app = App(handlers=(), migrations=[Path(__file__).parent / "versions"])
"""
VERSION = """
from alembic import op
revision, down_revision, branch_labels, depends_on = "shop_0001", None, ("shop",), None
def upgrade():
    op.execute("create table one (id int unique deferrable initially deferred)")
    {code}
"""
SECRET = "hunter2"
HINT = "nothing was applied; correct it or the database, or run this again with --debug to see where."


class Migrating(Protocol):
    def __call__(self, statement: str, code: str = ...) -> str: ...


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    postgres.psql("create database failed_migration")
    yield postgres.database_url("failed_migration")
    postgres.psql("drop database failed_migration with (force)")


@pytest.fixture
def migrating(command: Command, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """What `worker migrate` says of an App whose one migration makes a table and then fails."""
    (tmp_path / "versions").mkdir()
    (tmp_path / f"{tmp_path.name}.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)

    def migrate(statement: str, code: str = "op.execute({statement!r})") -> str:
        written = VERSION.format(code=code.format(statement=statement))
        (tmp_path / "versions" / "shop_0001.py").write_text(written)
        told = command("migrate", exit_code=1, DATABASE_URL=empty_url, WORKER_APP=f"{tmp_path.name}:app")
        assert told.stdout == ""
        return told.stderr

    return migrate


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("create table one (id int)", "42P07 DuplicateTableError"),
        ("alter table missing add id int", "42P01 UndefinedTableError"),
        ("create table missing.users ()", "3F000 InvalidSchemaNameError"),
        (f"select '{SECRET}'::int", "22P02 InvalidTextRepresentationError"),
    ],
)
def test_a_migration_that_fails_is_named_with_its_fault_and_nothing_is_applied(
    migrating: Migrating, postgres: EmbeddedPostgres, statement: str, told: str
) -> None:
    assert migrating(statement) == f"Error: The migration shop_0001 failed ({told}): {HINT}\n"
    assert "worker" not in postgres.psql("select nspname from pg_namespace", database="failed_migration").split()


def test_one_that_fails_at_the_commit_is_told_too(migrating: Migrating) -> None:
    twice = "insert into one values (1), (1)"
    assert migrating(twice) == f"Error: The migration failed (23505 UniqueViolationError): {HINT}\n"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("with op.get_context().autocommit_block(): op.execute({statement!r})", "AssertionError"),
        ("int({statement!r})", "ValueError"),
    ],
)
def test_so_is_one_whose_fault_isnt_postgresqls(
    migrating: Migrating, postgres: EmbeddedPostgres, code: str, told: str
) -> None:
    index = f"create index concurrently {SECRET} on one (id)"
    assert migrating(index, code) == f"Error: The migration shop_0001 failed ({told}): {HINT}\n"
    assert "worker" not in postgres.psql("select nspname from pg_namespace", database="failed_migration").split()
