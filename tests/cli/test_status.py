"""worker status: what waits where, who works, and what nobody knows."""

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from redis import Redis as SyncRedis

from tests.cli.conftest import Command
from tests.conftest import StartWorker
from tests.support.waiting import wait_until
from worker.availability import Availability
from worker.broker import connect_broker
from worker.database import create_engine
from worker.heartbeat import LIVES_MS, Heartbeat, beat
from worker.relay import Relay
from worker.reporting.observer import Observers

Query = Callable[..., Sequence[Any]]
Work = Callable[[], object]

MINUTE_MS = 60_000


@pytest.fixture
def queue(redis_url: str) -> Callable[..., None]:
    """Put a direct job into Redis: `score` ms from now, perhaps held by a worker."""

    def put(
        job_id: str, score: int, *, name: str = "tests.greet", queue: str = "arq:queue", held: bool = False
    ) -> None:
        client: Any = SyncRedis.from_url(redis_url)  # typed for both of redis-py's clients
        with client as redis:
            seconds, micros = redis.time()
            redis.set(f"arq:job:{job_id}", json.dumps({"t": None, "f": name, "a": [], "k": {}, "et": 1}))
            redis.zadd(queue, {job_id: seconds * 1000 + micros // 1000 + score})
            if held:
                redis.set(f"arq:in-progress:{job_id}", "somebody", px=MINUTE_MS)

    return put


def told(command: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("status", "--json").stdout)
    return found


@pytest.mark.leaves_keys("nobody takes the jobs")
def test_status_counts_each_queue(command: Command, queue: Callable[..., None], work: Work, query: Query) -> None:
    command("enqueue", "tests.fail")
    work()
    # A part of it that died isn't counted beside it.
    query("""
        insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, parent_id, finished_at)
        select id || '/1', enqueued_ms, name, queue, status, true, id, finished_at from worker.run
    """)
    for at in ("--delay=60", "--delay=0"):
        command("enqueue", "tests.greet", "--json", '{"name": "Ada"}', "--queue", "mail", at)
    query("update worker.outbox set due_at = now() - interval '1 minute' where due_at <= now()")
    queue("due", -2 * MINUTE_MS)
    queue("also due", -MINUTE_MS)
    queue("later", 60 * MINUTE_MS)
    queue("claimed", 10_000, held=True)
    queue("held by arq", -3 * MINUTE_MS, held=True)
    found = told(command)
    queues = {each["name"]: each for each in found["queues"]}
    assert sorted(queues) == ["arq:queue", "mail", "slow"]
    oldest = queues["arq:queue"].pop("oldest_due_s")
    assert 120 <= oldest < 180
    assert queues["arq:queue"] == {
        "name": "arq:queue", "waiting": 3, "due": 2, "in_flight": 2, "unsent": 0, "dead": 1,
    }  # fmt: skip
    assert (queues["mail"]["waiting"], queues["mail"]["unsent"], queues["mail"]["dead"]) == (0, 2, 0)
    assert (found["unsent"], found["dead"], found["workers"]) == (2, 1, [])
    assert 60 <= found["oldest_unsent_s"] < 120
    shown = command("status").stdout
    assert "No worker lives: nothing is relayed and nothing runs. Start worker run." in shown
    assert "Dead jobs: 1. See worker runs --status dead" in shown


@pytest.mark.leaves_keys("nobody takes the jobs")
def test_jobs_without_a_handler_are_named(command: Command, queue: Callable[..., None], query: Query) -> None:
    assert told(command)["unknown_jobs"] == {}
    for place in range(3):
        queue(f"unknown {place}", -1, name="tests.renamed", queue=("arq:queue", "slow")[place % 2])
    queue("known", -1, name="tests.hello")
    query("select worker.enqueue('tests.gone', '{}')")
    assert told(command)["unknown_jobs"] == {"tests.gone": 1, "tests.renamed": 3}
    assert "Jobs of the unknown name tests.renamed: 3." in command("status").stdout


@pytest.mark.leaves_keys("nobody takes the jobs")
def test_a_queue_that_no_worker_reads_is_named(
    command: Command, queue: Callable[..., None], database_url: str, redis_url: str
) -> None:
    for name in ("mail", "arqs"):
        command("enqueue", "tests.greet", "--json", '{"name": "Ada"}', "--queue", name)
    asyncio.run(_relay(database_url, redis_url))
    command("enqueue", "tests.greet", "--json", '{"name": "Ada"}', "--queue", "unsent")
    queue("waits", -1, queue="slow")
    queue("is read", -1)
    assert told(command)["unread_queues"] == [], "that no worker lives is said already"
    asyncio.run(_live(redis_url, "arq:queue", "empty"))
    assert told(command)["unread_queues"] == ["mail", "slow", "unsent"]
    said = "Jobs wait in the queue slow, which no worker reads. Start worker run --queue slow."
    assert said in command("status").stdout


async def _relay(database_url: str, redis_url: str) -> None:
    """Send what is in the outbox."""
    engine = create_engine(database_url, pool_size=2)
    async with connect_broker(redis_url) as redis:
        assert await Relay(engine, redis, Availability(engine), Observers(), pushed=lambda: None).drain() == 2
    await engine.dispose()


async def _live(redis_url: str, *queues: str) -> None:
    """The heartbeats of a worker, for twenty seconds, and of arq's own."""
    async with connect_broker(redis_url) as redis:
        await beat(redis, Heartbeat("a test", "a host", 1, queues, running=0, started_ms=0))
        await redis.set("arqs:health-check", "as arq's worker has it", px=MINUTE_MS)


def test_the_check_fails_where_no_worker_of_this_host_lives(command: Command) -> None:
    refused = command("status", "--check", exit_code=1)
    host = socket.gethostname()
    assert refused.stderr == f"Error: No worker of the host {host} lives; start worker run, or look into its log.\n"


async def test_a_workers_heartbeat_is_seen_while_it_lives(redis_url: str, start_worker: StartWorker) -> None:
    host = socket.gethostname()
    worker = await start_worker("run", "--queue", "slow", "--queue", "mail", WORKER_APP="tests.cli.app:app")

    async def checks() -> tuple[int, str]:
        check = await start_worker("status", "--check")
        return await check.wait(), check.output

    async def lives() -> bool:
        with SyncRedis.from_url(redis_url) as redis:
            return bool(redis.exists("ratchet:workers"))

    await wait_until(lives, timeout=30)
    assert await checks() == (0, f"Both servers answer; workers of {host} that live: 1.")
    status = await start_worker("status", "--json", WORKER_APP="tests.cli.app:app")
    await status.wait()
    [alive] = status.lines[0]["workers"]
    assert (alive["host"], alive["pid"], alive["queues"], alive["running"]) == (host, worker.pid, ["slow", "mail"], 0)
    client: Any = SyncRedis.from_url(redis_url)
    with client as redis:
        assert 0 < redis.pttl(f"ratchet:worker:{alive['name']}") <= LIVES_MS
        assert await worker.stop() == 0
        assert redis.keys("ratchet:worker*") == []
    code, output = await checks()
    assert (code, output.startswith("Error: No worker")) == (1, True)
