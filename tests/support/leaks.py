"""What a test may not leave behind. Each function returns sentences, none if all is well."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import cast

from redis import Redis

from worker.dev import EmbeddedPostgres

# What ends a moment after it was told to (a thread, a backend) gets this long.
GRACE = 2.0  # s

# Keys that may live without a TTL. Sorted sets are queues: they hold ids by due time.
LASTING_KEYS = ("ratchet:relay:*", "ratchet:leases:*", "ratchet:parked:*", "ratchet:since")


async def task_leaks() -> list[str]:
    """Look for tasks other than the one that asks."""
    tasks = asyncio.all_tasks() - {cast("asyncio.Task[object]", asyncio.current_task())}
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=GRACE)
    return [f"a task is still running: {task!r}" for task in tasks]


def thread_leaks(before: Iterable[threading.Thread]) -> list[str]:
    known = set(before)

    def look() -> list[str]:
        return [f"a thread is still running: {thread.name}" for thread in threading.enumerate() if thread not in known]

    return _settle(look)


def connection_leaks(postgres: EmbeddedPostgres, database: str) -> list[str]:
    sessions = (
        "SELECT application_name, state, left(query, 80) FROM pg_stat_activity "
        f"WHERE datname = '{database}' AND backend_type = 'client backend'"
    )

    def look() -> list[str]:
        return [f"a connection is still open: {line}" for line in postgres.psql(sessions).splitlines()]

    return _settle(look)


def key_leaks(redis: Redis) -> list[str]:
    """Look for keys that would stay for ever: no TTL, and no queue, queued job or lasting key either."""
    # redis-py types each answer as "this or an awaitable of this": one class of commands serves both clients.
    keys = [key.decode() for key in cast("list[bytes]", redis.keys("*"))]
    types = {key: cast("bytes", redis.type(key)) for key in keys}
    queues = [key for key in keys if types[key] == b"zset"]
    queued = {member.decode() for queue in queues for member in cast("list[bytes]", redis.zrange(queue, 0, -1))}
    return [
        f"a Redis key has no TTL and no owner: {key}"
        for key in keys
        if key not in queues
        and cast("int", redis.ttl(key)) == -1
        and not any(fnmatchcase(key, pattern) for pattern in LASTING_KEYS)
        and not (key.startswith("arq:job:") and key.removeprefix("arq:job:") in queued)
    ]


def _settle(look: Callable[[], list[str]]) -> list[str]:
    """Look again until nothing is found, for at most GRACE seconds."""
    deadline = time.monotonic() + GRACE
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
