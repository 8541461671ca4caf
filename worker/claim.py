"""Taking due jobs from Redis, and giving them back. Each is one script: it happens whole or not at all.

The scripts build key names from ids, which a single Redis allows and Redis Cluster does not.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from arq.connections import ArqRedis

from worker.wire import MAX_MESSAGE_BYTES

PAGES = 20
"""How many steps a claim pages past jobs that somebody else holds, before it leaves the rest to the next poll."""
RETRY_KEY_TTL_S = 88_400
"""arq's own."""

# Now is Redis's own clock, never a worker's. A job that another worker holds (a stock arq worker, say) is passed over
# and its score never moved. A large message comes alone, so that a batch of them can't fill the memory.
CLAIM = """
local queue, want, lease, token, limit, pages = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, passed, bytes = {}, 0, 0
for _ = 1, pages do
    local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', passed, want)
    if #due == 0 then break end
    for i = 1, #due, 2 do
        local id, score = due[i], due[i + 1]
        local held = 'arq:in-progress:' .. id
        if redis.call('EXISTS', held) == 1 then
            passed = passed + 1
        else
            local message = redis.pcall('GET', 'arq:job:' .. id)
            if type(message) == 'table' then message = false end
            bytes = bytes + (message and #message or 0)
            if #claimed > 0 and bytes > limit then return {now, claimed} end
            local value = token .. ':' .. score
            redis.call('SET', held, value, 'PX', lease)
            redis.call('ZADD', queue, now + lease, id)
            redis.call('PERSIST', 'arq:job:' .. id)
            claimed[#claimed + 1] = {
                id, score, value, message, redis.call('GET', 'arq:retry:' .. id), redis.call('ZREM', 'arq:abort', id)
            }
            if #claimed >= want then return {now, claimed} end
        end
    end
end
return {now, claimed}
"""

# Only the holder of the token settles; whoever lost it has nothing to say any more.
FINISH = """
local queue, id, token, result, keep = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('GET', 'arq:in-progress:' .. id) ~= token then return 0 end
redis.call('DEL', 'arq:job:' .. id, 'arq:in-progress:' .. id, 'arq:retry:' .. id)
redis.call('ZREM', queue, id)
redis.call('ZREM', 'arq:abort', id)
if keep > 0 then redis.call('SET', 'arq:result:' .. id, result, 'PX', keep) end
return 1
"""

PUT_BACK = """
local queue, id, token, due, delay, adopted, failures, ttl =
    KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), ARGV[7]
if redis.call('GET', 'arq:in-progress:' .. id) ~= token then return 0 end
if delay > 0 then
    local time = redis.call('TIME')
    due = time[1] * 1000 + math.floor(time[2] / 1000) + delay
end
if adopted ~= '' then redis.call('SET', 'arq:job:' .. id, adopted, 'XX') end
if failures > 0 then redis.call('SET', 'arq:retry:' .. id, failures, 'EX', ttl) end
redis.call('ZADD', queue, 'XX', due, id)
redis.call('DEL', 'arq:in-progress:' .. id)
return 1
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds. `token` stands in its in-progress key: who holds it, and when it was due."""

    job_id: str
    queue: str
    token: str
    message: bytes | None
    due_ms: int
    claimed_ms: int
    """Redis's time."""
    failures: int
    aborted: bool


class Claims:
    """The scripts, bound to a client."""

    def __init__(self, redis: ArqRedis, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._claim: Any = redis.register_script(CLAIM)
        self._finish: Any = redis.register_script(FINISH)
        self._put_back: Any = redis.register_script(PUT_BACK)

    async def take(self, queue: str, want: int, token: str) -> list[Claim]:
        """Up to `want` due jobs of `queue`, oldest first."""
        now, rows = await self._claim(keys=[queue], args=[want, self._lease_ms, token, MAX_MESSAGE_BYTES, PAGES])
        return [
            Claim(
                job_id.decode("utf-8", "backslashreplace"),
                queue,
                value.decode(),
                message,
                int(float(score)),
                now,
                int(failures) if failures is not None and failures.isdigit() else 0,
                bool(aborted),
            )
            for job_id, score, value, message, failures, aborted in rows
        ]

    async def finish(self, claim: Claim, result: bytes, keep: timedelta) -> bool:
        """Take the job out of Redis and keep its result. False: the lease was lost."""
        keep_ms = int(keep.total_seconds() * 1000)
        return bool(await self._finish(keys=[claim.queue], args=[claim.job_id, claim.token, result, keep_ms]))

    async def put_back(self, claim: Claim, delay: timedelta, *, adopted: bytes | None, failures: int) -> bool:
        """Offer the job again after `delay`; without one, at its old place. False: the lease was lost."""
        delay_ms = max(0, int(delay.total_seconds() * 1000))
        if delay > timedelta(0):
            delay_ms = max(1, delay_ms)
        args = [claim.job_id, claim.token, claim.due_ms, delay_ms, adopted or b"", failures, RETRY_KEY_TTL_S]
        return bool(await self._put_back(keys=[claim.queue], args=args))
