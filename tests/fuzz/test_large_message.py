"""A message of 100 MB that somebody else put into Redis, before a worker with other jobs to do."""

from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from tests.cli.app import Greet
from tests.cli.conftest import APP
from tests.conftest import StartWorker
from worker.queue import Queue

SIZE = 100_000_000
MOST = 5
"""Copies that there may be at once: of the socket, redis-py, the claim, asyncpg and its message."""


async def test_a_message_of_100_mb_is_dead_and_kept_and_the_worker_goes_on(
    start_worker: StartWorker, redis: Redis, database_url: str
) -> None:
    worker = await start_worker("run", WORKER_APP=APP)
    queue = Queue(redis)
    await queue.enqueue(Greet(name="Ada"), job_id="before")
    await worker.wait_for("completed", job_id="before")
    before = peak_bytes(worker.pid)
    await redis.set("arq:job:large", b'{"f":"tests.greet","k":{"x":"%b"},"et":1}' % (b"x" * SIZE))
    await redis.zadd("arq:queue", {"large": 1})
    await queue.enqueue(Greet(name="Ada"), job_id="after")
    await worker.wait_for("dead", job_id="large")
    await worker.wait_for("completed", job_id="after")
    assert peak_bytes(worker.pid) - before < MOST * SIZE
    assert await worker.stop() == 0
    connection = await asyncpg.connect(database_url)
    kept = await connection.fetchrow(
        "select status, length(message) > $1, error from worker.run where id = 'large'", SIZE
    )
    await connection.close()
    assert kept is not None
    assert tuple(kept)[:2] == ("dead", True)
    assert "the limit is" in kept["error"]


def peak_bytes(pid: int) -> int:
    """Of resident memory, since the process began."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
