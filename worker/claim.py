"""Taking due jobs from Redis, and giving them back. Each is one script: it happens whole or not at all.

The scripts build key names from ids, which a single Redis allows and Redis Cluster does not.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, repeat
from math import isfinite
from typing import Any

from redis.asyncio import Redis

from worker.wake import IDLE_MS, WAKE
from worker.wire import IN_PROGRESS_KEY, MAX_MESSAGE_BYTES

PAGE, PAGES = 100, 20
"""A claim looks past so many jobs of a queue that somebody else holds, in so many steps; the next goes on behind."""
STEP = 16
"""Messages that are read at once, so that at most so many large ones are read in vain."""
RETRY_KEY_TTL_S = 88_400
"""arq's own."""
MAX_ID_BYTES = 1_000
"""Of an id in the ledger, whose index takes no more than 2,704 bytes."""
MARK_AGAIN_S = 10.0
"""An idle worker looks in earnest so often, though nothing seems due: the idle marks must not run out."""
AT_ONCE = 1_000
"""Endings a script call: Lua unpacks no more than some 8,000 values."""

# Now is Redis's own clock, never a worker's. A job that another worker holds (a stock arq worker, say) is passed over
# and its score never moved. A large message comes alone, so that a batch of them can't fill the memory. A key of the
# wrong type must not keep other jobs from being claimed: MGET takes it for a missing one, the rest goes through pcall.
#
# What can be asked or told of many jobs at once is, since each redis.call costs a microsecond. A message from the
# outbox never expires; another's expiry is taken away, or it could run out while the job runs.
#
# Jobs whose lease ran out come first: in the queue they stand behind everything that was due before the lease's end,
# and with a long backlog a killed worker's jobs would wait for all of it.
CLAIM = """
local want, lease, token, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local page, pages, step, idle_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids, scores, messages, failures, aborted = {}, {}, {}, {}, {}
local counts, passed, bytes, full = {}, {}, 0, false

local function texts(prefix, some)
    local keys = {}
    for i, id in ipairs(some) do keys[i] = prefix .. id end
    return redis.call('MGET', unpack(keys))
end

-- Notes those of `found` that nobody holds, as long as there is room. Returns their ids.
local function choose(found, scored)
    local held, free, chosen = texts('arq:in-progress:', found), {}, {}
    for i = 1, #found do
        if not held[i] then free[#free + 1] = i end
    end
    while #chosen < #free and not full do
        local part, last = {}, math.min(#free, #chosen + step, #chosen + want - #ids)
        for i = #chosen + 1, last do part[#part + 1] = found[free[i]] end
        for i, message in ipairs(texts('arq:job:', part)) do
            local size = message and #message or 0
            full = #ids > 0 and bytes + size > limit
            if full then break end
            bytes = bytes + size
            chosen[#chosen + 1] = part[i]
            ids[#ids + 1], scores[#ids + 1], messages[#ids + 1] = part[i], scored[free[#chosen]], message
        end
        full = full or #ids >= want
    end
    return chosen
end

local function take(queue, found, scored)
    local chosen = choose(found, scored)
    if #chosen == 0 then return 0 end
    local before, held = #ids - #chosen, {}
    local counted, asked = texts('arq:retry:', chosen), redis.pcall('ZMSCORE', 'arq:abort', unpack(chosen))
    for i, id in ipairs(chosen) do
        local at = before + i
        redis.call('SET', 'arq:in-progress:' .. id, token .. ':' .. scores[at], 'PX', lease)
        if messages[at] and string.sub(messages[at], -7) ~= ',"o":1}' then redis.call('PERSIST', 'arq:job:' .. id) end
        if asked[i] then redis.call('ZREM', 'arq:abort', id) end
        failures[at], aborted[at] = counted[i], asked[i] and 1 or 0
        held[2 * i - 1], held[2 * i] = now + lease, id
    end
    redis.call('ZADD', queue, unpack(held))
    redis.call('ZADD', 'ratchet:leases:' .. queue, unpack(held))
    return #chosen
end

local function take_expired(queue)
    local leases, found, scored = 'ratchet:leases:' .. queue, {}, {}
    local expired = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, math.min(want - #ids, page))
    if #expired == 0 then return end
    for i, score in ipairs(redis.call('ZMSCORE', queue, unpack(expired))) do
        if score then
            found[#found + 1], scored[#found + 1] = expired[i], score
        else
            redis.call('ZREM', leases, expired[i])
        end
    end
    if #found > 0 then take(queue, found, scored) end
end

-- Passes over `behind` jobs. Returns how many the next claim has to, where this one didn't come to the end of them.
local function take_due(queue, behind)
    local size = math.min(want - #ids, page)
    for _ = 1, pages do
        if full then return 0 end
        local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', behind, size)
        if #due == 0 then return 0 end
        local found, scored = {}, {}
        for i = 1, #due, 2 do found[#found + 1], scored[#found + 1] = due[i], due[i + 1] end
        behind, size = behind + #found - take(queue, found, scored), page
    end
    return full and 0 or behind
end

for i, queue in ipairs(KEYS) do
    local before = #ids
    if not full then take_expired(queue) end
    passed[i] = full and 0 or take_due(queue, tonumber(ARGV[8 + i]))
    counts[i] = #ids - before
end
if not full then
    for _, queue in ipairs(KEYS) do redis.call('SET', 'ratchet:idle:' .. queue, 1, 'PX', idle_ms) end
end
return {now, passed, counts, ids, scores, messages, failures, aborted}
"""

# Only the holder of the token settles; whoever lost it has nothing to say any more. An id that had no message when it
# was claimed may have got one since: that is another job, and it is offered.
SETTLE = (
    WAKE
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tokens, settled, gone = {}, {}, {}
local ended, offered, freed, woken = {}, {}, {}, {}
for i = 2, #ARGV, 4 do tokens[#tokens + 1] = 'arq:in-progress:' .. ARGV[i] end
tokens = redis.call('MGET', unpack(tokens))

local function add(lists, queue, ...)
    lists[queue] = lists[queue] or {}
    for _, value in ipairs({...}) do table.insert(lists[queue], value) end
end

local function finish(queue, id, result, keep, had_message)
    if had_message == '0' and redis.call('TYPE', 'arq:job:' .. id)['ok'] == 'string' then return end
    gone[#gone + 1], gone[#gone + 2] = 'arq:job:' .. id, 'arq:retry:' .. id
    add(ended, queue, id)
    if keep ~= '0' then redis.call('SET', 'arq:result:' .. id, result, 'PX', keep) end
end

local function put_back(queue, id, adopted, due, failures)
    if adopted ~= '' then redis.call('SET', 'arq:job:' .. id, adopted, 'XX') end
    if failures ~= '0' then redis.call('SET', 'arq:retry:' .. id, failures, 'EX', RETRY_TTL) end
    add(offered, queue, due, id)
end

for n = 1, #tokens do
    local queue, id, token, how = unpack(ARGV, 4 * n - 3, 4 * n)
    settled[n] = tokens[n] == token and 1 or 0
    if settled[n] == 1 then
        gone[#gone + 1] = 'arq:in-progress:' .. id
        add(freed, queue, id)
        local verb, first, second, body = string.match(how, '^(%a+) (%d+) (%d+) (.*)$')
        if verb == 'finish' then finish(queue, id, body, first, second) end
        if verb == 'later' then put_back(queue, id, body, now + first, second) end
        if verb == 'now' then
            put_back(queue, id, body, first, second)
            woken[queue] = true
        end
    end
end
for queue, ids in pairs(ended) do
    redis.pcall('ZREM', queue, unpack(ids))
    redis.pcall('ZREM', 'arq:abort', unpack(ids))
end
for queue, ids in pairs(offered) do redis.pcall('ZADD', queue, 'XX', unpack(ids)) end
for queue, ids in pairs(freed) do redis.pcall('ZREM', 'ratchet:leases:' .. queue, unpack(ids)) end
if #gone > 0 then redis.call('DEL', unpack(gone)) end
for queue in pairs(woken) do wake(queue) end
return settled
""".replace("RETRY_TTL", str(RETRY_KEY_TTL_S))
)


@dataclass(slots=True)
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
    limited: str = ""
    """The name whose permit it holds, where that is limited."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Take the job out of Redis and keep its result for so long; 0: keep none."""

    claim: Claim
    result: bytes = b""
    keep_ms: int = 0


@dataclass(frozen=True, slots=True)
class PutBack:
    """Offer the job again after `delay`; without one, at its old place."""

    claim: Claim
    delay: timedelta = timedelta(0)
    adopted: bytes | None = None
    """Replaces the message."""
    failures: int | None = None
    """What Redis counts from now on; None: as before."""


class Claims:
    """The scripts, bound to a client."""

    def __init__(self, redis: Redis, lease: timedelta) -> None:
        """`lease`: how long a claimed job is held unless that is renewed."""
        self._redis = redis
        self._lease_ms = int(lease.total_seconds() * 1000)
        self._passed: dict[str, int] = {}
        self._clock: Clock | None = None
        self._claim: Any = redis.register_script(CLAIM)
        self._settle: Any = redis.register_script(SETTLE)

    async def look(self, queues: Sequence[str]) -> float | None:
        """Milliseconds until the earliest job of `queues` is due, at most 0 where one is; None: there is none.

        One cheap command a queue. Says 0 too where only a claim can tell: before the first, and so often that the idle
        marks stay. A job that a stock arq worker holds looks due.
        """
        if self._clock is None or self._clock.age_s() > MARK_AGAIN_S:
            return 0
        async with self._redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(queue, 0, 0, withscores=True)
            heads: list[list[tuple[bytes, float]]] = await pipe.execute()
        now = self._clock.now_ms()
        return min((head[0][1] - now for head in heads if head), default=None)

    async def take(self, queues: Sequence[str], want: int, token: str) -> list[Claim]:
        """Up to `want` due jobs, oldest first: all of the first queue, then of the second, and so on.

        Where that leaves slots free, the queues are marked as idle, and who adds to them tells CHANNEL.
        """
        if want <= 0:
            return []
        args = [want, self._lease_ms, token, MAX_MESSAGE_BYTES, PAGE, PAGES, STEP, IDLE_MS]
        behind = [self._passed.get(queue, 0) for queue in queues]
        now, passed, counts, *columns = await self._claim(keys=queues, args=[*args, *behind])
        self._clock = Clock(now, time.monotonic())
        self._passed.update(zip(queues, passed, strict=True))
        sources = chain.from_iterable(map(repeat, queues, counts))
        return [
            Claim(
                readable_id(raw_id),
                raw_id,
                queue,
                f"{token}:{score.decode()}",
                message,
                _due_ms(score),
                now,
                _count(failures),
                aborted == 1,
            )
            for queue, raw_id, score, message, failures, aborted in zip(sources, *columns, strict=True)
        ]

    async def is_held(self, claim: Claim) -> bool:
        """Whether the job's in-progress key still carries this claim's token."""
        held: bytes | None = await self._redis.get(IN_PROGRESS_KEY.encode() + claim.raw_id)
        return held == claim.token.encode()

    async def settle(self, endings: Sequence[Finish | PutBack]) -> list[bool]:
        """Tell Redis what came of jobs, in one round trip. False: that one's lease was lost, and nothing was told."""
        settled: list[int] = []
        for start in range(0, len(endings), AT_ONCE):
            part = endings[start : start + AT_ONCE]
            settled += await self._settle(keys=[], args=[value for ending in part for value in _arguments(ending)])
        return [done == 1 for done in settled]


@dataclass(frozen=True, slots=True)
class Clock:
    """Redis's, as the last claim told it."""

    told_ms: int
    at_s: float
    """time.monotonic() then."""

    def age_s(self) -> float:
        """How long ago that was."""
        return time.monotonic() - self.at_s

    def now_ms(self) -> float:
        """Redis's time, late by the way of the answer."""
        return self.told_ms + self.age_s() * 1000


def _arguments(ending: Finish | PutBack) -> tuple[Any, ...]:
    """What SETTLE takes of one ending."""
    claim = ending.claim
    return claim.queue, claim.raw_id, claim.token, _how(ending)


def _how(ending: Finish | PutBack) -> bytes:
    claim = ending.claim
    if isinstance(ending, Finish):
        return b"finish %d %d %b" % (ending.keep_ms, claim.message is not None, ending.result)
    failures = claim.failures if ending.failures is None else ending.failures
    adopted = ending.adopted or b""
    if ending.delay > timedelta(0):
        return b"later %d %d %b" % (max(1, int(ending.delay.total_seconds() * 1000)), failures, adopted)
    return b"now %d %d %b" % (claim.due_ms, failures, adopted)


def readable_id(raw_id: bytes) -> str:
    """`raw_id` as PostgreSQL's text takes it: itself, unless it isn't UTF-8, holds NUL, or is overlong."""
    text = raw_id.decode("utf-8", "backslashreplace").replace("\0", "\\0")
    if len(text) <= MAX_ID_BYTES and (text.isascii() or len(text.encode()) <= MAX_ID_BYTES):
        return text
    return f"{text[:100]}…{hashlib.sha256(raw_id).hexdigest()}"


def _due_ms(score: bytes) -> int:
    value = float(score)
    return int(max(0.0, value)) if isfinite(value) else 0


def _count(failures: bytes | None) -> int:
    return int(failures) if failures and failures.isdigit() and len(failures) < 10 else 0  # noqa: PLR2004 - digits
