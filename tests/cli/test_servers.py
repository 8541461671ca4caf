"""Servers that are away or refuse: `run` waits for ever and says so once, other commands give up after 10 s."""

import asyncio
import os
import signal
from datetime import timedelta

import pytest
from redis import Redis as SyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.cli.conftest import APP, Command
from tests.conftest import StartWorker
from worker.broker import connect_broker
from worker.cli.reach import reach_database, reach_redis
from worker.database import DatabaseAway, create_engine
from worker.dev import EmbeddedPostgres, EmbeddedValkey

NOBODY_THERE = "postgresql://ratchet:hunter2@127.0.0.1:1/none"
NOT_FOUND = "postgresql://ratchet:hunter2@no-such-host.invalid/none"
NO_REDIS = "redis://:hunter2@127.0.0.1:1"


async def test_run_waits_for_both_servers_and_says_so_once(
    start_worker: StartWorker, postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    postgres.stop()
    valkey.stop()
    worker = await start_worker("run", WORKER_APP=APP)
    await worker.wait_for("waiting_for_server", server="PostgreSQL")
    postgres.start()
    await worker.wait_for("server_is_there", server="PostgreSQL")
    await worker.wait_for("waiting_for_server", server="Redis")
    valkey.start()
    await worker.wait_for("server_is_there", server="Redis")
    assert [line["server"] for line in worker.lines if line.get("event") == "waiting_for_server"] == [
        "PostgreSQL",
        "Redis",
    ]
    assert await worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_waits_for_a_server_ends_when_it_is_told_to(
    start_worker: StartWorker, number: signal.Signals
) -> None:
    worker = await start_worker("run", WORKER_APP=APP, DATABASE_URL=NOT_FOUND)
    await worker.wait_for("waiting_for_server", server="PostgreSQL")
    worker.signal(number)
    assert await worker.wait() == 0
    assert "hunter2" not in worker.output


async def test_other_commands_give_up_with_exit_code_3(
    start_worker: StartWorker, postgres: EmbeddedPostgres, valkey: EmbeddedValkey
) -> None:
    """Refused, not found, and servers that take the connection and don't answer; all at once, since each takes 10 s."""
    direct = ("enqueue", "tests.ping", "--direct")
    os.kill(postgres.pid, signal.SIGSTOP)
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        commands = (
            ("PostgreSQL can't be used (ConnectionRefusedError", await start_worker("runs", DATABASE_URL=NOBODY_THERE)),
            (
                "PostgreSQL can't be used (gaierror",
                await start_worker("migrate", DATABASE_URL=NOT_FOUND, WORKER_APP=APP),
            ),
            ("PostgreSQL can't be used (TimeoutError", await start_worker("runs")),
            ("Redis can't be used (ConnectionError", await start_worker(*direct, REDIS_URL=NO_REDIS, WORKER_APP=APP)),
            ("Redis can't be used (TimeoutError", await start_worker(*direct, WORKER_APP=APP)),
        )
        for sentence, process in commands:
            assert await process.wait() == 3
            assert sentence in process.output
            assert process.output.count("\n") == 0
            assert "hunter2" not in process.output
    finally:
        os.kill(postgres.pid, signal.SIGCONT)
        os.kill(valkey.pid, signal.SIGCONT)


async def test_patience_ends_after_its_time() -> None:
    engine, redis = create_engine(NOBODY_THERE, pool_size=1), connect_broker(NO_REDIS)
    patience = timedelta(seconds=0.2)
    async with asyncio.timeout(5):
        with pytest.raises(DatabaseAway):
            await reach_database(engine, patience)
        with pytest.raises(RedisConnectionError):
            await reach_redis(redis, patience)
    await engine.dispose()
    await redis.aclose()


async def test_a_server_that_refuses_is_believed_at_once(
    start_worker: StartWorker, postgres: EmbeddedPostgres, redis_url: str
) -> None:
    unknown = postgres.database_url("nothing")
    for process in [await start_worker(name, DATABASE_URL=unknown, WORKER_APP=APP) for name in ("runs", "run")]:
        assert await process.wait() == 3
        assert "PostgreSQL can't be used (InvalidCatalogNameError" in process.output
    with SyncRedis.from_url(redis_url) as redis:
        redis.config_set("requirepass", "hunter2")
        try:
            for process in [await start_worker(name, WORKER_APP=APP) for name in ("status", "run")]:
                assert await process.wait() == 3
                assert process.output == "Error: Redis refuses us; check user and password in REDIS_URL."
        finally:
            redis.config_set("requirepass", "")


def test_a_redis_that_knows_us_and_lets_us_do_too_little_says_so(command: Command, redis_url: str) -> None:
    with SyncRedis.from_url(redis_url) as redis:
        redis.acl_setuser("weak", enabled=True, passwords=["+hunter2"], keys=["*"], commands=["+ping"])
        try:
            weak = redis_url.replace("redis://", "redis://weak:hunter2@")
            told = command("status", exit_code=3, REDIS_URL=weak).stderr
        finally:
            redis.acl_deluser("weak")
    assert told == "Error: Redis refuses us (no permission); allow the user in REDIS_URL what it needs.\n"


def test_a_redis_that_is_full_says_so(command: Command, redis_url: str) -> None:
    with SyncRedis.from_url(redis_url) as admin:
        admin.config_set("maxmemory", 1)
        try:
            result = command("enqueue", "tests.ping", "--direct", exit_code=3)
        finally:
            admin.config_set("maxmemory", 0)
    told = "Redis is full; give it more maxmemory, or wait until workers have caught up."
    assert result.stderr == f"Error: {told}\n"


async def test_a_missing_migration_ends_run_and_sends_others_to_migrate(
    start_worker: StartWorker, postgres: EmbeddedPostgres
) -> None:
    run, runs = [await start_worker(name, DATABASE_URL=postgres.url, WORKER_APP=APP) for name in ("run", "runs")]
    assert (await run.wait(), await runs.wait()) == (2, 2)
    lacking = f"The database lacks the migrations of {APP} (WORKER_APP) up to worker_0003"
    assert run.output == f"Error: {lacking}; run worker migrate."
    assert runs.output == "Error: The database isn't up to date; run worker migrate."


def test_migrate_brings_an_empty_database_up_to_date_once(command: Command, postgres: EmbeddedPostgres) -> None:
    postgres.psql("create database test_migrate_command")
    try:
        url = postgres.database_url("test_migrate_command")
        assert command("migrate", DATABASE_URL=url).stdout == f"Migrated {APP} to worker_0003.\n"
        assert command("migrate", DATABASE_URL=url).stdout == f"The database is up to date with {APP}.\n"
        assert command("runs", "--json", DATABASE_URL=url).stdout == ""
    finally:
        postgres.psql("drop database test_migrate_command with (force)")
