"""What `worker migrate` and the check at a worker's start make of a database's version."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.conftest import JOBS_MIGRATIONS
from tests.support.locks import locked
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.migrate import migrate
from worker.outdated import missing_versions

LONG = 7
"""The advisory lock that a migration of a test waits for."""


async def versions_missing_after(database_url: str, statement: str) -> set[str]:
    engine = create_engine(database_url, pool_size=1, application="ratchet test")
    try:
        async with engine.begin() as connection:
            await connection.execute(text(statement))
        return await missing_versions(engine, [JOBS_MIGRATIONS])
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("select 1", set[str]()),
        ("delete from worker.alembic_version where version_num = 'worker_0003'", {"worker_0003"}),
    ],
)
async def test_a_database_behind_the_code_is_told(database_url: str, statement: str, missing: set[str]) -> None:
    assert await versions_missing_after(database_url, statement) == missing


async def test_a_database_ahead_of_the_code_serves_it_while_a_deploy_is_rolled_back(database_url: str) -> None:
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0003'"
    assert await versions_missing_after(database_url, later) == set()


async def test_migrating_a_database_ahead_of_the_code_leaves_it_as_it_is(database_url: str) -> None:
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0003'"
    assert await versions_missing_after(database_url, later) == set()
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS])
    assert await versions_missing_after(database_url, "select 1") == set()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Another application's folder of versions."""
    (tmp_path / "0001_letters.py").write_text(
        "from alembic import op\nrevision = 'letters_0001'\ndown_revision = None\n"
        "def upgrade():\n    op.execute('create table letter (id int)')\n"
    )
    return tmp_path


async def versions(database_url: str) -> set[str]:
    engine = create_engine(database_url, pool_size=1, application="ratchet test")
    async with engine.connect() as connection:
        found = (await connection.execute(text("select version_num from worker.alembic_version"))).scalars().all()
    await engine.dispose()
    return set(found)


async def test_the_versions_of_another_application_are_no_later_ones_of_this(database_url: str, letters: Path) -> None:
    """As where `worker migrate` was run without WORKER_APP first, and made the shop's tables."""
    before = await versions(database_url)
    await asyncio.to_thread(migrate, database_url, [letters])
    assert await versions(database_url) == {*before, "letters_0001"}
    assert await versions_missing_after(database_url, "select from letter") == set()


async def test_one_history_is_applied_though_the_database_is_ahead_in_another(database_url: str, letters: Path) -> None:
    """A deploy that upgrades the runtime was rolled back, and the next brings a version of the domain."""
    before = await versions(database_url)
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0003'"
    assert await versions_missing_after(database_url, later) == set()
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS, letters])
    assert await versions(database_url) == {*before, "letters_0001", "worker_9999"} - {"worker_0003"}
    assert await versions_missing_after(database_url, "select from letter") == set()


def make_dependent(letters: Path, version: str) -> None:
    [file] = letters.iterdir()
    file.write_text(f"{file.read_text()}depends_on = {version!r}\n")


async def test_a_history_that_depends_on_another_isnt_ahead_where_that_one_is(database_url: str, letters: Path) -> None:
    make_dependent(letters, "worker_0001")
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0003'"
    assert await versions_missing_after(database_url, later) == set()
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS, letters])
    assert await versions_missing_after(database_url, "select from letter") == set()


async def test_nor_is_that_one_behind_where_nobody_has_noted_its_beginning(database_url: str, letters: Path) -> None:
    make_dependent(letters, "worker_0001")
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS, letters])
    later = (
        "update worker.alembic_version set version_num = 'worker_9999', bases = null where version_num = 'worker_0003'"
    )
    assert await versions_missing_after(database_url, later) == set()
    engine = create_engine(database_url, pool_size=1)
    assert await missing_versions(engine, [JOBS_MIGRATIONS, letters]) == set()
    await engine.dispose()


@pytest.mark.parametrize("now", ["letters_0001", "letters_9999"])
async def test_what_an_applied_version_depends_on_is_not_missing_though_it_has_no_row(
    database_url: str, letters: Path, now: str
) -> None:
    make_dependent(letters, "worker_0003")
    await asyncio.to_thread(migrate, database_url, [JOBS_MIGRATIONS, letters])
    assert await versions(database_url) == {"jobs_0001", "letters_0001"}
    engine = create_engine(database_url, pool_size=1, application="ratchet test")
    async with engine.begin() as connection:
        moved = "update worker.alembic_version set version_num = :now where version_num = 'letters_0001'"
        await connection.execute(text(moved), {"now": now})
    assert await missing_versions(engine, [JOBS_MIGRATIONS, letters]) == set()
    await engine.dispose()


async def test_a_database_that_was_migrated_before_bases_were_noted_counts_versions(database_url: str) -> None:
    older = "alter table worker.alembic_version drop column bases"
    assert await versions_missing_after(database_url, older) == set()
    later = "update worker.alembic_version set version_num = 'worker_9999' where version_num = 'worker_0003'"
    assert await versions_missing_after(database_url, later) == set()
    behind = "delete from worker.alembic_version where version_num = 'worker_9999'"
    assert await versions_missing_after(database_url, behind) == {"worker_0003"}


async def test_who_looks_at_the_version_while_a_migration_is_under_way_doesnt_wait_for_it(
    database_url: str, letters: Path
) -> None:
    """A worker that begins meanwhile, such as one that has recycled itself."""
    (letters / "0002_long.py").write_text(
        "from alembic import op\nrevision = 'letters_0002'\ndown_revision = 'letters_0001'\n"
        f"def upgrade():\n    op.execute('select pg_advisory_xact_lock({LONG})')\n"
    )
    engine = create_engine(database_url, pool_size=3, application="ratchet test")
    async with locked(engine, LONG):
        migrating = asyncio.create_task(asyncio.to_thread(migrate, database_url, [letters]))

        async def is_under_way() -> bool:
            async with engine.connect() as connection:
                waits = "select exists (select from pg_locks where objid = :lock and not granted)"
                return bool((await connection.execute(text(waits), {"lock": LONG})).scalar_one())

        await wait_until(is_under_way)
        assert await missing_versions(engine, [JOBS_MIGRATIONS]) == set()
    await migrating
    assert await missing_versions(engine, [letters]) == set()
    await engine.dispose()
