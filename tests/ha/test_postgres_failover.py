"""A primary with a synchronous standby, which takes over under load. Whatever was committed is applied, once."""

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conftest import StartWorker
from tests.ha.app import TABLES
from tests.ha.load import ENV, load_on
from tests.support.networked import NetworkedPostgres, Standby
from tests.support.waiting import wait_until
from worker import database
from worker.database import DatabaseAway, connect, create_engine
from worker.migrate import migrate


@pytest.fixture
def primary() -> Iterator[NetworkedPostgres]:
    with NetworkedPostgres() as server:
        migrate(server.url)
        server.psql(*TABLES)
        yield server


@pytest.fixture
def standby(primary: NetworkedPostgres) -> Iterator[Standby]:
    """Start a standby, for which every commit waits from then on."""
    with primary.standby() as server:
        primary.psql("alter system set synchronous_standby_names = 'standby'", "select pg_reload_conf()")
        yield server


@pytest.fixture
def database_url(primary: NetworkedPostgres, standby: Standby) -> str:
    hosts = f"{primary.location},{standby.location}"
    return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=primary"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(database_url, pool_size=2, application="producer")
    yield engine
    await engine.dispose()


async def test_a_promoted_synchronous_standby_has_every_job_and_the_worker_goes_on(
    primary: NetworkedPostgres, standby: Standby, engine: AsyncEngine, start_worker: StartWorker
) -> None:
    async def is_listening() -> bool:
        listening = "select count(*) from pg_stat_activity where application_name = 'ratchet worker listen'"
        return standby.psql(listening) == "1"

    worker = await start_worker(**ENV)
    async with load_on(engine) as load:
        await worker.wait_for("marked", count=50, timeout=60)
        assert primary.psql("select sync_state from pg_stat_replication", "show synchronous_commit") == "sync\non"
        primary.crash()
        await worker.wait_for("database_away", timeout=60)
        standby.promote()
        await worker.wait_for("database_back", timeout=60)
        await wait_until(is_listening, timeout=60)
        await load.grows_by(50)
    await load.is_applied_once()
    assert await worker.stop() == 0


async def test_a_host_that_is_cut_off_takes_its_share_of_the_time_only(
    primary: NetworkedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as hole:  # it takes connections, and never says a word
        host = f"127.0.0.1:{hole.getsockname()[1]}"
        connection = await connect(f"postgresql://postgres@{host},{primary.location}/postgres", "test")
        assert await connection.fetchval("select 1") == 1
        await connection.close()
        with pytest.raises(DatabaseAway, match="TimeoutError"):
            await connect(f"postgresql://postgres@{host}/postgres", "test")


async def test_a_standby_is_no_place_to_work(standby: Standby) -> None:
    with pytest.raises(DatabaseAway, match="TargetServerAttributeNotMatched") as away:
        await connect(f"postgresql://postgres@{standby.location}/postgres", "test")
    assert not away.value.refused
    chosen = await connect(f"postgresql://postgres@{standby.location}/postgres?target_session_attrs=any", "test")
    assert await chosen.fetchval("select pg_is_in_recovery()")
    await chosen.close()
