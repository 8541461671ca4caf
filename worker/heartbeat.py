"""Which workers live: each says so in Redis every few seconds, and takes it back when it ends."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

WORKER_KEY = "ratchet:worker:"
WORKERS_SET = "ratchet:workers"
"""Names by the time of their last heartbeat (Redis's, ms), so that nobody must scan all keys to find them."""

BEAT_EVERY_S = 5.0
LIVES_MS = 20_000
"""A worker that has said nothing for so long counts as gone."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker tells of itself."""

    name: str
    """Of this process's life; a restart gets another."""
    host: str
    pid: int
    queues: tuple[str, ...]
    running: int
    """Jobs."""
    started_ms: int


_CODEC = TypeAdapter(Heartbeat)

BEAT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
"""


async def beat(redis: Redis, heartbeat: Heartbeat) -> None:
    """Say that this worker lives."""
    keys = [WORKER_KEY + heartbeat.name, WORKERS_SET]
    script: Any = redis.register_script(BEAT)
    await script(keys=keys, args=[heartbeat.name, _CODEC.dump_json(heartbeat), LIVES_MS])


async def farewell(redis: Redis, name: str) -> None:
    """Say that it doesn't any more."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.delete(WORKER_KEY + name)
        pipe.zrem(WORKERS_SET, name)
        await pipe.execute()


async def live_workers(redis: Redis) -> list[Heartbeat]:
    """The workers that live, by host and pid. What another version wrote and this one can't read is left out."""
    names: list[bytes] = await redis.zrange(WORKERS_SET, 0, -1)
    beats: list[bytes | None] = await redis.mget([WORKER_KEY.encode() + name for name in names]) if names else []
    return sorted(filter(None, map(_read, beats)), key=lambda worker: (worker.host, worker.pid))


def _read(raw: bytes | None) -> Heartbeat | None:
    try:
        return _CODEC.validate_json(raw) if raw else None
    except ValidationError:
        return None
