"""The bare engine: the least that takes jobs by arq's protocol from Redis, a bound for anybody who does.

One script claims as many due jobs as there are free slots, each job is a task that reads its message and calls, and
what has ended is told to Redis every 5 ms in one go. No lease is renewed, nothing is validated, timed, retried, logged,
limited or cancelled. An idle one is woken as ours is. Jobs that need a session open it as the plain loop does.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import uvloop
from pydantic_core import from_json
from redis.asyncio import Redis

from bench import loop
from bench.inside import Given, main
from bench.order import connect
from bench.ours import producer
from worker.broker import connect_broker
from worker.wake import IDLE_KEY, IDLE_MS, listen_for_wakes

QUEUE = "arq:queue"
GATHER_S = 0.005
LEASE_MS = 15_000
POLL_S = 0.1
"""Where nothing is due, and no word comes."""

Call = Callable[[int], Awaitable[object]]

CLAIM = f"""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
if #ids == 0 then
    redis.call('SET', '{IDLE_KEY}' .. KEYS[1], 1, 'PX', {IDLE_MS})
    return {{ids, ids, ids}}
end
local jobs, retries, held = {{}}, {{}}, {{}}
for i, id in ipairs(ids) do
    jobs[i], retries[i] = 'arq:job:' .. id, 'arq:retry:' .. id
    held[2 * i - 1], held[2 * i] = now + ARGV[2], id
    redis.call('SET', 'arq:in-progress:' .. id, ARGV[3], 'PX', ARGV[2])
end
redis.call('ZADD', KEYS[1], unpack(held))
return {{ids, redis.call('MGET', unpack(jobs)), redis.call('MGET', unpack(retries))}}
"""


class Engine:
    """Runs until it is killed."""

    def __init__(self, given: Given, redis: Redis, call: Call | None) -> None:
        self._given = given
        self._call = call
        self._redis = redis
        self._claim: Any = redis.register_script(CLAIM)
        self._running: set[asyncio.Task[bytes]] = set()
        self._ended: list[bytes] = []
        self._wake = asyncio.Event()

    async def serve(self) -> None:
        helping = [
            asyncio.create_task(self._acknowledge()),
            asyncio.create_task(listen_for_wakes(self._redis, self._wake.set)),
        ]
        while not any(task.done() for task in helping):
            self._wake.clear()
            free = self._given.slots - len(self._running)
            ids, messages, _ = await self._claim(keys=[QUEUE], args=[min(free, 50), LEASE_MS, "bare"])
            for job_id, message in zip(ids, messages, strict=True):
                task = asyncio.create_task(self._run(job_id, message))
                self._running.add(task)
                task.add_done_callback(self._done)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _run(self, job_id: bytes, message: bytes) -> bytes:
        n: int = from_json(message)["k"]["n"]
        self._given.tally.mark(n)
        if self._call is not None:
            await self._call(n)
        return job_id

    def _done(self, task: asyncio.Task[bytes]) -> None:
        self._running.discard(task)
        self._ended.append(task.result())
        if 2 * len(self._running) <= self._given.slots:
            self._wake.set()

    async def _acknowledge(self) -> None:
        while True:
            await asyncio.sleep(GATHER_S)
            if ended := self._ended:
                self._ended = []
                keys = [key + job_id for job_id in ended for key in (b"arq:job:", b"arq:retry:", b"arq:in-progress:")]
                async with self._redis.pipeline() as pipe:
                    pipe.delete(*keys)
                    pipe.zrem(QUEUE, *ended)
                    await pipe.execute()


async def work(given: Given, job: str) -> None:
    """With our connections, whose commands are packed in C."""
    in_session = loop.JOBS.get(job)
    call = in_session and partial(in_session, connect(given.database_url, given.slots))
    async with connect_broker(given.redis_url) as redis:
        await Engine(given, redis, call).serve()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        uvloop.run(work(Given.from_environment(), sys.argv[2]))
    else:
        main(uvloop.run, producer, None)
