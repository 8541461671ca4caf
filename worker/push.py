"""From the outbox to Redis: which rows may be sent, and how they are."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.wire import restamp

BATCH = 500
IDLE_LIMIT_S = 5
"""A relay that was stopped in mid-transaction holds up nobody for longer."""
ONE_AT_A_TIME = 0x7261746368_72
"""The advisory lock of all that isn't a first, plain send. ("ratchr" in ASCII.)"""

# Never resets a job that Redis has. An id that stands there with another enqueue time is waited for: its
# acknowledgement wakes the relay.
PUSH = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sent = {}
for i = 1, #ARGV, 5 do
    local id, queue, enqueued, delay, message = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), ARGV[i + 4]
    local there = redis.call('GET', 'arq:job:' .. id)
    local same = there == message
    if there and not same then
        local ok, body = pcall(cjson.decode, there)
        same = ok and type(body) == 'table' and body['et'] == enqueued
    end
    if there and not same then
        sent[#sent + 1] = 0
    else
        if not there then
            redis.call('SET', 'arq:job:' .. id, message)
            redis.call('DEL', 'arq:result:' .. id)
        end
        redis.call('ZADD', queue, 'NX', now + delay, id)
        sent[#sent + 1] = 1
    end
end
return sent
"""

WHOLE = """
local missing = {}
for i = 1, #ARGV, 2 do
    if redis.call('EXISTS', 'arq:job:' .. ARGV[i]) == 0 or not redis.call('ZSCORE', ARGV[i + 1], ARGV[i]) then
        missing[#missing + 1] = (i + 1) / 2
    end
end
return missing
"""

# Due by PostgreSQL's clock; a run that backs off or snoozes says so itself.
_COLUMNS = """
o.seq, o.id, o.queue, o.enqueued_ms, o.message, o.coalesces, greatest(0, ceil(1000 * extract(epoch from greatest(o.due_at,
    (select next_at from worker.run as r where r.id = o.id and r.enqueued_ms = o.enqueued_ms)
) - clock_timestamp())))::bigint as delay_ms
"""
_NO_OTHER_SENT = "not exists (select from worker.outbox as s where s.id = o.id and s.sent_epoch is not null)"

_SEND_PLAIN = text(f"""
with picked as (
    select seq from worker.outbox as o where sent_epoch is null and not coalesces and {_NO_OTHER_SENT}
    order by seq limit :batch for update skip locked
)
update worker.outbox as o set sent_epoch = :epoch, sent_at = clock_timestamp() from picked where o.seq = picked.seq
returning {_COLUMNS}
""")

# Of several unsent rows of one id the newest stays, with the earliest due time; of one chosen `job_id`, the oldest.
# A row that isn't later than its id's last final run is given the next millisecond, or it would be that run's duplicate.
_SEND_COALESCING = text(f"""
with due as (
    select distinct id from (
        select id from worker.outbox as o
        where sent_epoch is null and coalesces and due_at <= clock_timestamp() and {_NO_OTHER_SENT}
        order by due_at limit :batch
    ) as first_ones
), ranked as (
    select o.seq, min(o.due_at) over (partition by o.id) as earliest,
        row_number() over (partition by o.id order by case when o.enqueued_ms = 0 then o.seq else -o.seq end) as place,
        (select max(r.enqueued_ms) from worker.run as r where r.id = o.id and r.finished_at is not null) as last_ms
    from worker.outbox as o join due using (id) where o.sent_epoch is null and o.coalesces
), gone as (
    delete from worker.outbox as o using ranked where o.seq = ranked.seq and ranked.place > 1
)
update worker.outbox as o set sent_epoch = :epoch, sent_at = clock_timestamp(), due_at = ranked.earliest,
    enqueued_ms = case when o.enqueued_ms = 0 then 0 else greatest(o.enqueued_ms, ranked.last_ms + 1) end
from ranked where o.seq = ranked.seq and ranked.place = 1
returning {_COLUMNS}
""")

_UNMARK = text("update worker.outbox set sent_epoch = null, sent_at = null where seq = any(:seqs)")

_SEND_AGAIN = text(f"""
with picked as (
    select seq from worker.outbox where sent_epoch < :epoch order by sent_epoch, seq limit :batch for update skip locked
)
update worker.outbox as o set sent_epoch = :epoch, sent_at = clock_timestamp() from picked where o.seq = picked.seq
returning {_COLUMNS}
""")

_SENT_PAGE = text("""
select seq, id, queue from worker.outbox
where sent_epoch is not null and seq > :after and sent_at < clock_timestamp() - make_interval(secs => :older_s)
order by seq limit :batch
""")
_SEND_MISSING = text(f"""
with picked as (select seq from worker.outbox where seq = any(:seqs) and sent_epoch is not null for update skip locked)
update worker.outbox as o set sent_at = clock_timestamp() from picked where o.seq = picked.seq returning {_COLUMNS}
""")

_LIMIT_IDLING = text("select set_config('idle_in_transaction_session_timeout', :idle_ms, true)")
_TAKE_TURN = text("select pg_advisory_xact_lock(:lock)")


class Pusher:
    """Sends batches. Whatever raises leaves rows either unsent or marked as sent, for the next look or the sweep."""

    def __init__(self, engine: AsyncEngine, redis: Redis) -> None:
        self._engine = engine
        self._push: Any = redis.register_script(PUSH)
        self._whole: Any = redis.register_script(WHOLE)

    async def send_plain(self, epoch: int) -> tuple[int, bool]:
        """Rows whose ids are their own. Many relays may do so at once. Returns how many were sent, and whether one must wait."""
        async with self._engine.begin() as connection:
            await _limit_idling(connection)
            rows = await _rows(connection, _SEND_PLAIN, epoch)
            waiting = await self._send(rows)
            if waiting:
                await connection.execute(_UNMARK, {"seqs": waiting})
            return len(rows) - len(waiting), bool(waiting)

    async def send_coalescing(self, epoch: int) -> tuple[int, bool]:
        """Rows whose ids others may carry.

        They are marked, and that is committed, before the push: the transaction that makes the run final must see the
        mark, since only a sent row is its own. The mark is taken back in the transaction that holds the turn, so that
        a relay which was stopped and overtaken takes nothing back.
        """
        async with self._engine.begin() as turn:
            await _take_turn(turn)
            async with self._engine.begin() as connection:
                rows = await _rows(connection, _SEND_COALESCING, epoch)
            waiting = await self._send(rows)
            if waiting:
                await turn.execute(_UNMARK, {"seqs": waiting})
            return len(rows) - len(waiting), bool(waiting)

    async def send_again(self, epoch: int) -> int:
        """A batch of what an earlier Redis was sent."""
        async with self._engine.begin() as turn:
            await _take_turn(turn)
            rows = await _rows(turn, _SEND_AGAIN, epoch)
            await self._send(rows)
            return len(rows)

    async def sweep(self, older: timedelta) -> int:
        """Send again what was sent longer ago than `older` and isn't whole in Redis, in the order of the key."""
        after, sent = 0, 0
        while True:
            async with self._engine.begin() as turn:
                await _take_turn(turn)
                page = {"after": after, "older_s": older.total_seconds(), "batch": BATCH}
                rows = (await turn.execute(_SENT_PAGE, page)).all()
                if not rows:
                    return sent
                after = rows[-1].seq
                missing = await self._whole(keys=[], args=[part for row in rows for part in (row.id, row.queue)])
                if missing:
                    seqs = [rows[place - 1].seq for place in missing]
                    again = (await turn.execute(_SEND_MISSING, {"seqs": seqs})).all()
                    await self._send(again)
                    sent += len(again)

    async def _send(self, rows: Sequence[Row[Any]]) -> list[int]:
        """Push them and return the keys of those that must wait for another job of their id."""
        if not rows:
            return []
        arguments: list[Any] = []
        for row in rows:
            message = restamp(row.message, enqueued_ms=row.enqueued_ms) if row.coalesces else row.message
            arguments += [row.id, row.queue, row.enqueued_ms, row.delay_ms, message]
        sent = await self._push(keys=[], args=arguments)
        return [row.seq for row, done in zip(rows, sent, strict=True) if not done]


async def _rows(connection: AsyncConnection, statement: TextClause, epoch: int) -> list[Row[Any]]:
    found = await connection.execute(statement, {"epoch": epoch, "batch": BATCH})
    return sorted(found.all(), key=lambda row: row.seq)


async def _limit_idling(connection: AsyncConnection) -> None:
    await connection.execute(_LIMIT_IDLING, {"idle_ms": str(IDLE_LIMIT_S * 1000)})


async def _take_turn(connection: AsyncConnection) -> None:
    await _limit_idling(connection)
    await connection.execute(_TAKE_TURN, {"lock": ONE_AT_A_TIME})
