"""The runtime's schema: safe to make again, by several at once, and beside other databases; and to take away."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import JOBS_MIGRATIONS
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.dev import EmbeddedPostgres
from worker.migrate import _config, migrate
from worker.models import Base
from worker.settings import SettingsError

NewDatabase = Callable[[], str]


@pytest.fixture
def new_database(postgres: EmbeddedPostgres) -> Iterator[NewDatabase]:
    made: list[str] = []

    def make() -> str:
        made.append(f"empty_{uuid4().hex}")
        postgres.psql(f"create database {made[-1]} strategy file_copy")
        return made[-1]

    yield make
    for name in made:
        postgres.psql(f"drop database {name} with (force)")


def schema(postgres: EmbeddedPostgres, database: str) -> str:
    """What there is, as psql lists it: relations, columns, indexes, constraints, functions, rights."""
    return postgres.psql(
        "select nspname, nspacl from pg_namespace where nspname = 'worker'",
        "select relname, relkind, relacl from pg_class where relnamespace = 'worker'::regnamespace order by 1",
        "select indexdef from pg_indexes where schemaname = 'worker' order by 1",
        "select proname, proacl, prosecdef from pg_proc where pronamespace = 'worker'::regnamespace order by 1",
        "select version_num from worker.alembic_version order by 1",
        database=database,
    )


@pytest.fixture
def in_latin1(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"latin1_{uuid4().hex}"
    postgres.psql(f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    yield postgres.database_url(name)
    postgres.psql(f"drop database {name} with (force)")


async def test_a_database_that_cant_hold_every_text_is_refused(in_latin1: str) -> None:
    """An error with a euro sign in its text couldn't be counted there, nor such a result be kept."""
    with pytest.raises(SettingsError, match="its database is in LATIN1; create one with encoding 'UTF8'"):
        await asyncio.to_thread(migrate, in_latin1)
    engine = create_engine(in_latin1, pool_size=1)
    async with engine.connect() as connection:
        assert (await connection.execute(text("select to_regnamespace('worker')"))).scalar_one() is None
    await engine.dispose()


def test_migrating_twice_changes_nothing(postgres: EmbeddedPostgres, new_database: NewDatabase) -> None:
    database = new_database()
    url = postgres.database_url(database)
    migrate(url, [JOBS_MIGRATIONS])
    postgres.psql("select worker.enqueue('a', '{}')", database=database)
    before = schema(postgres, database)
    migrate(url, [JOBS_MIGRATIONS])
    assert schema(postgres, database) == before
    assert postgres.psql("select count(*) from worker.outbox", database=database) == "1"


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_several_migrate_one_database_at_once(
    postgres: EmbeddedPostgres, new_database: NewDatabase, isolation: str
) -> None:
    """Who has waited for another sees what that one has applied, whatever the database is set to."""
    database = new_database()
    postgres.psql(f"alter database {database} set default_transaction_isolation = '{isolation}'")
    url = postgres.database_url(database)
    await asyncio.gather(*(asyncio.to_thread(migrate, url, [JOBS_MIGRATIONS]) for _ in range(4)))
    assert postgres.psql("select count(*) from worker.relay_state", database=database) == "1"


async def test_two_databases_of_a_cluster_make_the_role_in_the_very_same_moment() -> None:
    """A role is the cluster's: the first makes it, and the other finds it there."""
    with EmbeddedPostgres(durable=False) as server:
        engine = create_engine(server.url, pool_size=1)
        server.psql("create database other")
        async with engine.begin() as first:
            await first.execute(text("create role worker_producer nologin"))
            migrating = asyncio.create_task(asyncio.to_thread(migrate, server.database_url("other")))

            async def it_waits() -> bool:
                waits = "select count(*) from pg_stat_activity where datname = 'other' and wait_event_type = 'Lock'"
                return await asyncio.to_thread(server.psql, waits) == "1"

            await wait_until(it_waits)
        await migrating
        await engine.dispose()
        may = "select has_schema_privilege('worker_producer', 'worker', 'usage')"
        assert server.psql(may, database="other") == "t"


def test_the_role_may_exist_already(postgres: EmbeddedPostgres, new_database: NewDatabase, template: str) -> None:
    assert postgres.psql("select count(*) from pg_roles where rolname = 'worker_producer'") == "1"
    database = new_database()
    migrate(postgres.database_url(database))
    may = "select has_schema_privilege('worker_producer', 'worker', 'usage')"
    assert postgres.psql(may, database=database) == "t"


@pytest.fixture
def owner(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A user who owns databases and may make no roles, as on many hosts."""
    postgres.psql("drop role if exists plain_owner", "create role plain_owner login")
    yield "plain_owner"
    postgres.psql("drop role plain_owner")


def test_a_user_without_the_right_to_make_roles_migrates_too(
    postgres: EmbeddedPostgres, new_database: NewDatabase, owner: str, template: str
) -> None:
    database = new_database()
    postgres.psql(f"alter database {database} owner to {owner}")
    url = postgres.database_url(database).replace("postgres@", f"{owner}@")
    migrate(url, [JOBS_MIGRATIONS])
    assert postgres.psql("select worker.enqueue('a', '{}', job_id => 'j')", database=database) == "j"
    postgres.psql(f"reassign owned by {owner} to postgres", database=database)


def test_a_schema_that_an_administrator_made_is_enough(
    postgres: EmbeddedPostgres, new_database: NewDatabase, owner: str, template: str
) -> None:
    database = new_database()
    postgres.psql(f"create schema worker authorization {owner}", database=database)
    migrate(postgres.database_url(database).replace("postgres@", f"{owner}@"))
    assert postgres.psql("select worker.enqueue('a', '{}', job_id => 'j')", database=database) == "j"
    postgres.psql(f"drop owned by {owner}", database=database)


def test_a_migration_that_fails_leaves_nothing(
    postgres: EmbeddedPostgres, new_database: NewDatabase, tmp_path: Path
) -> None:
    (tmp_path / "0001_broken.py").write_text(
        "from alembic import op\nrevision = 'broken_0001'\ndown_revision = None\nbranch_labels = ('broken',)\n"
        "depends_on = 'worker_0001'\n"
        "def upgrade():\n    op.execute('create table half (x int)')\n    op.execute('select 1 / 0')\n"
    )
    database = new_database()
    with pytest.raises(Exception, match="division by zero"):
        migrate(postgres.database_url(database), [tmp_path])
    made = "select count(*) from pg_class where relname in ('half', 'outbox', 'alembic_version')"
    assert postgres.psql(made, database=database) == "0"


async def test_the_downgrade_takes_everything_away_and_the_upgrade_brings_it_back(
    postgres: EmbeddedPostgres, new_database: NewDatabase
) -> None:
    database = new_database()
    url = postgres.database_url(database)
    await asyncio.to_thread(migrate, url)
    before = schema(postgres, database)
    engine = create_engine(url, pool_size=1)

    def downgrade(connection: Connection) -> None:
        config = _config([])
        config.attributes["connection"] = connection
        command.downgrade(config, "worker@base")

    async with engine.begin() as connection:
        await connection.run_sync(downgrade)
        left = await connection.execute(
            text("select relname from pg_class where relnamespace = 'worker'::regnamespace and relkind in ('r', 'S')")
        )
        assert left.scalars().all() == ["alembic_version"]
    await engine.dispose()
    await asyncio.to_thread(migrate, url)
    assert schema(postgres, database) == before


async def test_the_models_are_what_the_migrations_made(engine: AsyncEngine) -> None:
    # The models know of no index, constraint or foreign key; the migrations are the source of those.
    def include(_object: object, _name: str | None, kind: str, *_: object) -> bool:
        return kind in {"table", "column"}

    def name(name: str | None, kind: str, *_: object) -> bool:
        return kind != "schema" or name == "worker"

    def compare(connection: Connection) -> list[object]:
        options: dict[str, object] = {
            "include_schemas": True,
            "version_table_schema": "worker",
            "include_name": name,
            "include_object": include,
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []
