"""Taking due jobs from Redis, and giving them back. Each is one script: it happens whole or not at all.

The scripts build key names from ids, which a single Redis allows and Redis Cluster does not.
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from typing import Any

from redis.asyncio import Redis

from worker.wire import IN_PROGRESS_KEY, MAX_MESSAGE_BYTES

PAGE, PAGES = 100, 20
"""A claim looks past so many jobs that somebody else holds, in so many steps; the next claim goes on behind them."""
RETRY_KEY_TTL_S = 88_400
"""arq's own."""
MAX_ID_BYTES = 1_000
"""Of an id in the ledger, whose index takes no more than 2,704 bytes."""

# Now is Redis's own clock, never a worker's. A job that another worker holds (a stock arq worker, say) is passed over
# and its score never moved. A large message comes alone, so that a batch of them can't fill the memory. A key of the
# wrong type must not keep other jobs from being claimed, hence pcall.
#
# Jobs whose lease ran out come first: in the queue they stand behind everything that was due before the lease's end,
# and with a long backlog a killed worker's jobs would wait for all of it.
CLAIM = """
local queue, want, lease, token = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local limit, passed, page, pages = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local leases = 'ratchet:leases:' .. queue
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, bytes, full = {}, 0, false

local function text(key)
    local value = redis.pcall('GET', key)
    return type(value) == 'string' and value
end

local function take(id, score)
    local held = 'arq:in-progress:' .. id
    if redis.call('EXISTS', held) == 1 then return false end
    local message = text('arq:job:' .. id)
    bytes = bytes + (message and #message or 0)
    if #claimed > 0 and bytes > limit then
        full = true
        return false
    end
    local value = token .. ':' .. score
    redis.call('SET', held, value, 'PX', lease)
    redis.call('ZADD', queue, now + lease, id)
    redis.call('ZADD', leases, now + lease, id)
    redis.call('PERSIST', 'arq:job:' .. id)
    claimed[#claimed + 1] = {
        id, score, value, message, text('arq:retry:' .. id), redis.call('ZREM', 'arq:abort', id)
    }
    full = #claimed >= want
    return true
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, want)) do
    local score = redis.call('ZSCORE', queue, id)
    if not score then redis.call('ZREM', leases, id) elseif not full then take(id, score) end
end

for _ = 1, pages do
    local due = full and {} or redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', passed, page)
    if #due == 0 then return {now, 0, claimed} end
    for i = 1, #due, 2 do
        if not full and not take(due[i], due[i + 1]) then passed = passed + 1 end
    end
end
return {now, passed, claimed}
"""

# Only the holder of the token settles; whoever lost it has nothing to say any more. An id that had no message when it
# was claimed may have got one since: that is another job, and it is offered.
FINISH = """
local queue, id, token, result, keep, empty = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
if redis.call('GET', 'arq:in-progress:' .. id) ~= token then return 0 end
if empty == '1' and redis.call('TYPE', 'arq:job:' .. id)['ok'] == 'string' then
    redis.call('DEL', 'arq:in-progress:' .. id)
    return 1
end
redis.call('DEL', 'arq:job:' .. id, 'arq:in-progress:' .. id, 'arq:retry:' .. id)
redis.call('ZREM', queue, id)
redis.call('ZREM', 'ratchet:leases:' .. queue, id)
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
redis.call('ZREM', 'ratchet:leases:' .. queue, id)
redis.call('DEL', 'arq:in-progress:' .. id)
return 1
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker holds."""

    job_id: str
    """The id as the ledger and the logs know it."""
    raw_id: bytes
    """The id as it stands in Redis: any bytes at all."""
    queue: str
    token: str
    """What stands in its in-progress key: who holds it, and when it was due."""
    message: bytes | None
    due_ms: int
    claimed_ms: int
    """Redis's time."""
    failures: int
    aborted: bool


class Claims:
    """The scripts, bound to a client."""

    def __init__(self, redis: Redis, lease: timedelta) -> None:
        """`lease`: how long a claimed job is held unless that is renewed."""
        self._redis = redis
        self._lease_ms = int(lease.total_seconds() * 1000)
        self._passed: dict[str, int] = {}
        self._claim: Any = redis.register_script(CLAIM)
        self._finish: Any = redis.register_script(FINISH)
        self._put_back: Any = redis.register_script(PUT_BACK)

    async def take(self, queue: str, want: int, token: str) -> list[Claim]:
        """Up to `want` due jobs of `queue`, oldest first."""
        args = [want, self._lease_ms, token, MAX_MESSAGE_BYTES, self._passed.get(queue, 0), PAGE, PAGES]
        now, self._passed[queue], rows = await self._claim(keys=[queue], args=args)
        return [
            Claim(
                readable_id(raw_id),
                raw_id,
                queue,
                value.decode(),
                message,
                _due_ms(score),
                now,
                _count(failures),
                bool(aborted),
            )
            for raw_id, score, value, message, failures, aborted in rows
        ]

    async def is_held(self, claim: Claim) -> bool:
        """Whether the job's in-progress key still carries this claim's token."""
        held: bytes | None = await self._redis.get(IN_PROGRESS_KEY.encode() + claim.raw_id)
        return held == claim.token.encode()

    async def finish(self, claim: Claim, result: bytes, keep: timedelta) -> bool:
        """Take the job out of Redis and keep its result. False: the lease was lost."""
        keep_ms = int(keep.total_seconds() * 1000)
        args = [claim.raw_id, claim.token, result, keep_ms, int(claim.message is None)]
        return bool(await self._finish(keys=[claim.queue], args=args))

    async def put_back(
        self, claim: Claim, delay: timedelta, *, adopted: bytes | None = None, failures: int | None = None
    ) -> bool:
        """Offer the job again after `delay`; without one, at its old place. False: the lease was lost.

        `adopted` replaces the message; `failures` is what Redis counts from now on.
        """
        delay_ms = max(1, int(delay.total_seconds() * 1000)) if delay > timedelta(0) else 0
        counted = claim.failures if failures is None else failures
        args = [claim.raw_id, claim.token, claim.due_ms, delay_ms, adopted or b"", counted, RETRY_KEY_TTL_S]
        return bool(await self._put_back(keys=[claim.queue], args=args))


def readable_id(raw_id: bytes) -> str:
    """`raw_id` as PostgreSQL's text takes it: itself, unless it isn't UTF-8, holds NUL, or is overlong."""
    text = raw_id.decode("utf-8", "backslashreplace").replace("\0", "\\0")
    return text if len(text.encode()) <= MAX_ID_BYTES else f"{text[:100]}…{hashlib.sha256(raw_id).hexdigest()}"


def _due_ms(score: bytes) -> int:
    value = float(score)
    return int(max(0.0, value)) if isfinite(value) else 0


def _count(failures: bytes | None) -> int:
    return int(failures) if failures and failures.isdigit() and len(failures) < 10 else 0  # noqa: PLR2004 - digits
