"""From the outbox to Redis: a batch of a lane at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker import lanes
from worker.brief import brief_transaction, turn
from worker.wake import WAKE
from worker.wire import restamp

# Never resets a job that Redis has. An id that stands there with another enqueue time is waited for, and so is a queue
# whose name belongs to something else: neither may hold up the batch. Our own keys are never a queue's, though an
# INSERT into the outbox may say so. An abort that was asked for before the job was enqueued meant an earlier job of its
# key.
PUSH = (
    WAKE
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local there, queues, due, sent, written, results, fresh = {}, {}, {}, {}, {}, {}, {}
for i = 1, #ARGV, 6 do there[#there + 1] = 'arq:job:' .. ARGV[i] end
there = redis.call('MGET', unpack(there))

local function is_same(old, new, enqueued)
    if old == new then return true end
    local ok, body = pcall(cjson.decode, old)
    return enqueued and ok and type(body) == 'table' and body['et'] == enqueued
end

local function forget_aborts(fresh)
    local ids, stale = {}, {}
    for i, n in ipairs(fresh) do ids[i] = ARGV[6 * n - 5] end
    for i, asked in ipairs(redis.pcall('ZMSCORE', 'arq:abort', unpack(ids))) do
        if asked and tonumber(asked) < tonumber(ARGV[6 * fresh[i] - 3]) then stale[#stale + 1] = ids[i] end
    end
    if #stale > 0 then redis.call('ZREM', 'arq:abort', unpack(stale)) end
end

for n = 1, #there do
    local id, queue, _, same, delay, message = unpack(ARGV, 6 * n - 5, 6 * n)
    if not there[n] or is_same(there[n], message, tonumber(same)) then
        queues[queue] = queues[queue] or {scored = {}, rows = {}}
        local scored, rows = queues[queue].scored, queues[queue].rows
        scored[#scored + 1], scored[#scored + 2], rows[#rows + 1] = now + delay, id, n
        due[queue] = due[queue] or tonumber(delay) <= 0
    end
    sent[n] = 0
end
for queue, found in pairs(queues) do
    local is_ours = string.sub(queue, 1, 8) == 'ratchet:'
    if not is_ours and type(redis.pcall('ZADD', queue, 'NX', unpack(found.scored))) ~= 'table' then
        for _, n in ipairs(found.rows) do
            sent[n] = 1
            if not there[n] then
                written[#written + 1], written[#written + 2] = 'arq:job:' .. ARGV[6 * n - 5], ARGV[6 * n]
                results[#results + 1] = 'arq:result:' .. ARGV[6 * n - 5]
                fresh[#fresh + 1] = n
            end
        end
    end
end
if #written > 0 then
    redis.call('MSET', unpack(written))
    redis.call('DEL', unpack(results))
    forget_aborts(fresh)
end
for queue, is_due in pairs(due) do
    if is_due then wake(queue) end
end
return sent
"""
)


@dataclass(frozen=True, slots=True)
class Backlog:
    """Which of the other lanes have something to send."""

    coalescing: bool
    again: bool
    waiting: frozenset[str]
    """Ids that wait for the end of another job of theirs; not all, where there are many."""


@dataclass(frozen=True, slots=True)
class LaneBatch:
    """What came of one look at a lane."""

    found: int = 0
    """Rows that something was done to. Zero: another look would find nothing either."""
    sent: int = 0
    refused: Mapping[int, str] = field(default_factory=dict[int, str])
    """Rows (key and id) that must wait, since Redis has another job of their id."""


class Pusher:
    """Sends batches. Whatever raises leaves rows either unsent or marked as sent, for the next look or the sweep."""

    def __init__(self, engine: AsyncEngine, redis: Redis) -> None:
        self._engine = engine
        self._push: Any = redis.register_script(PUSH)

    async def look(self, epoch: int, refused: Sequence[str]) -> Backlog:
        """What could be sent now, but for the rows of `refused`."""
        async with brief_transaction(self._engine) as connection:
            seen = (await connection.execute(lanes.LOOK, {"epoch": epoch, "refused": refused})).one()
        return Backlog(seen.coalescing, seen.again, frozenset(seen.waiting))

    async def send_plain(self, epoch: int, refused: Sequence[str]) -> LaneBatch:
        """Rows whose ids are their own, due or not. Many relays may do so at once."""
        async with brief_transaction(self._engine) as connection:
            rows = await lanes.rows(connection, lanes.MARK_PLAIN, epoch=epoch, refused=refused)
            return await self._push_or_unmark(connection, rows)

    async def send_coalescing(self, epoch: int, refused: Sequence[str]) -> LaneBatch:
        """Rows whose ids others may carry, once they are due.

        They are marked, and that is committed, before the push: the transaction that makes the run final must see the
        mark, since only a sent row is its own. The mark is taken back in the transaction that holds the turn, so that
        a relay which was stopped and overtaken takes nothing back.
        """
        async with turn(self._engine) as connection:
            async with brief_transaction(self._engine) as first:
                rows = await lanes.rows(first, lanes.MARK_COALESCING, epoch=epoch, refused=refused)
            batch = await self._push_or_unmark(connection, [row for row in rows if row.is_marked], are_new=True)
            return LaneBatch(len(rows), batch.sent, batch.refused)

    async def send_again(self, epoch: int, refused: Sequence[str]) -> LaneBatch:
        """Rows that an earlier Redis was sent."""
        async with turn(self._engine) as connection:
            rows = await lanes.rows(connection, lanes.MARK_AGAIN, epoch=epoch, refused=refused)
            return await self._push_or_unmark(connection, rows, before=epoch - 1)

    async def push(self, rows: Sequence[Row[Any]], *, are_new: bool = False) -> dict[int, str]:
        """Put rows into Redis. Returns those (key and id) that must wait for another job of their id.

        `are_new`: none was sent before. Then what stands there under a key with the same enqueue time is another job,
        which was enqueued in the same millisecond, unless it is the same in all.
        """
        if not rows:
            return {}
        arguments: list[Any] = []
        for row in rows:
            message = restamp(row.message, enqueued_ms=row.enqueued_ms) if row.coalesces else row.message
            same = "" if are_new and row.enqueued_ms > 0 else row.enqueued_ms
            arguments += [row.id, row.queue, row.enqueued_ms, same, row.delay_ms, message]
        sent = await self._push(keys=[], args=arguments)
        return {row.seq: row.id for row, done in zip(rows, sent, strict=True) if not done}

    async def _push_or_unmark(
        self,
        connection: AsyncConnection,
        rows: Sequence[Row[Any]],
        *,
        before: int | None = None,
        are_new: bool = False,
    ) -> LaneBatch:
        """`before`: the epoch that rows which must wait go back to."""
        refused = await self.push(rows, are_new=are_new)
        if refused:
            await connection.execute(lanes.UNMARK, {"seqs": [str(seq) for seq in refused], "before": before})
        return LaneBatch(len(rows), len(rows) - len(refused), refused)
