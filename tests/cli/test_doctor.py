"""worker doctor: it finds what is wrong, and says what to change."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis as SyncRedis

from tests.cli.conftest import APP, Command
from worker.dev import EmbeddedPostgres


def verdicts(command: Command, exit_code: int = 0, **env: str) -> dict[str, tuple[str, str]]:
    """By check: the verdict and its text."""
    lines = command("doctor", "--json", exit_code=exit_code, **env).stdout.splitlines()
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {each["check"]: (each["verdict"], each["text"]) for each in found}


@pytest.fixture
def redis(redis_url: str) -> Iterator[SyncRedis]:
    with SyncRedis.from_url(redis_url) as client:
        yield client


def test_a_place_without_a_worker_has_nothing_but_a_warning(command: Command) -> None:
    found = verdicts(command, WORKER_QUEUES="arq:queue,slow")
    assert {check: verdict for check, (verdict, _) in found.items()} == {
        "settings": "ok",
        "queues": "ok",
        "PostgreSQL": "ok",
        "migrations": "ok",
        "connections": "ok",
        "oldest transaction": "ok",
        "pooler": "ok",
        "notify": "ok",
        "Redis": "ok",
        "Redis memory": "ok",
        "relay": "ok",
        "workers": "warning",
    }
    assert "Version 18" in found["PostgreSQL"][1]
    assert "Valkey 9" in found["Redis"][1]
    assert "noeviction" in command("doctor").stdout


def test_a_job_counts_once_whatever_it_was_called_before(command: Command) -> None:
    assert verdicts(command)["settings"][1] == f"6 jobs of {APP}, concurrency 10, queues arq:queue."


def test_queues_of_jobs_that_arent_read_are_a_warning(command: Command) -> None:
    """Another worker may read them."""
    hint = "add them, or see that another worker reads them."
    verdict, told = verdicts(command)["queues"]
    assert (verdict, told) == ("warning", f"WORKER_QUEUES lacks the queues of some jobs: slow (1); {hint}")
    verdict, told = verdicts(command, WORKER_QUEUES="mail")["queues"]
    assert told == f"WORKER_QUEUES lacks the queues of some jobs: arq:queue (5), slow (1); {hint}"


def test_a_memory_policy_that_evicts_fails(command: Command, redis: SyncRedis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        verdict, told = verdicts(command, exit_code=1)["Redis memory"]
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert (verdict, told) == (
        "fails",
        "The policy is allkeys-lru: waiting jobs may be evicted; set maxmemory-policy to noeviction.",
    )


def test_a_replica_fails(command: Command, redis: SyncRedis) -> None:
    redis.replicaof("127.0.0.1", "1")
    try:
        verdict, told = verdicts(command, exit_code=1)["Redis"]
    finally:
        redis.replicaof("NO", "ONE")
    assert verdict == "fails"
    assert "a replica; REDIS_URL must lead to the primary" in told


def test_missing_migrations_and_too_few_connections_fail(command: Command, postgres: EmbeddedPostgres) -> None:
    found = verdicts(command, exit_code=1, DATABASE_URL=postgres.url, WORKER_CONCURRENCY="300")
    assert found["migrations"] == ("fails", "Missing up to worker_0003; run worker migrate.")
    assert found["connections"][0] == "fails"
    assert "A worker of concurrency 300 takes 305" in found["connections"][1]
    assert "relay" not in found


def test_the_connections_of_every_process_are_counted(command: Command) -> None:
    verdict, told = verdicts(command, exit_code=1, WORKER_PROCESSES="30")["connections"]
    assert verdict == "fails"
    assert told.startswith("A worker of concurrency 10 in 30 processes takes 450; ")
    assert told.endswith(": lower WORKER_PROCESSES or WORKER_CONCURRENCY, or raise max_connections.")
    verdict, told = verdicts(command, WORKER_PROCESSES="10")["connections"]
    assert (verdict, "takes 150; " in told, "up to 390 while suspects run" in told) == ("warning", True, True)
    assert verdicts(command, WORKER_PROCESSES="2")["connections"][0] == "ok"


def test_notifications_that_cant_come_are_told(command: Command, database_url: str) -> None:
    found = verdicts(command, exit_code=1, WORKER_LISTEN_URL="postgresql://nobody@/none?host=/nowhere")
    assert found["notify"] == ("fails", "WORKER_LISTEN_URL can't be reached to listen; correct it.")


def test_another_redis_than_the_relays_is_told(command: Command, postgres: EmbeddedPostgres, database_url: str) -> None:
    name = database_url.split("/")[3].split("?", maxsplit=1)[0]
    postgres.psql("update worker.relay_state set marker = 'another'", database=name)
    verdict, told = verdicts(command)["relay"]
    assert (verdict, told.split(";")[0]) == ("warning", "This isn't the Redis that the outbox was sent to")
    assert told.endswith("give all the same REDIS_URL.")


def test_a_server_that_lets_us_look_at_too_little_fails_and_the_other_is_looked_at(
    command: Command, redis: SyncRedis, redis_url: str, postgres: EmbeddedPostgres, database_url: str
) -> None:
    postgres.psql("create role too_poor login")
    redis.acl_setuser("weak", enabled=True, passwords=["+hunter2"], keys=["*"], commands=["+ping", "+get"])
    weak = redis_url.replace("redis://", "redis://weak:hunter2@")
    try:
        poor = verdicts(command, 1, DATABASE_URL=database_url.replace("postgres@", "too_poor@"))
        found = verdicts(command, 1, REDIS_URL=weak)
    finally:
        redis.acl_deluser("weak")
        postgres.psql("drop role too_poor")
    grant = "PostgreSQL refuses us (insufficient privilege); grant the role in DATABASE_URL what it needs."
    allow = "Redis refuses us (no permission); allow the user in REDIS_URL what it needs."
    assert (poor["PostgreSQL"], poor["Redis"][0]) == (("fails", grant), "ok")
    assert (found["PostgreSQL"][0], found["Redis"]) == ("ok", ("fails", allow))
