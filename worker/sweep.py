"""The slow sweep: what was sent long ago and isn't whole in Redis is sent again, in the order of the outbox's key.

A page a step, so that what is new never waits for it; and one worker's sweep is every worker's.
"""

import time
from datetime import timedelta
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import lanes
from worker.brief import brief_transaction, end_stuck, turn
from worker.parking import PARKED
from worker.push import Pusher

# Whole: the message is there, and its id in the queue or parked. (A job that runs has both.)
WHOLE = (
    PARKED
    + """
local missing = {}
for i = 1, #ARGV, 2 do
    local is_queued = type(redis.pcall('ZSCORE', ARGV[i + 1], ARGV[i])) == 'string' or parking_of(ARGV[i + 1], ARGV[i])
    if not is_queued or redis.call('EXISTS', 'arq:job:' .. ARGV[i]) == 0 then
        missing[#missing + 1] = (i + 1) / 2
    end
end
return missing
"""
)


def _lies_back(moment: str, by: str) -> str:
    """Whether `moment` is so long ago, or still to come: the clock was set back, and nobody waits until it is there."""
    return f"({moment} <= clock_timestamp() - cast(:{by} as interval) or {moment} > clock_timestamp())"


# After a wipe living workers are given time to restore the in-progress keys of what they run.
_BEGIN = text(f"""
update worker.relay_state set swept_at = clock_timestamp()
where (:at_once or swept_at is null or {_lies_back("swept_at", "every")})
    and (raised_at is null or {_lies_back("raised_at", "settle")})
""")  # noqa: S608 - put together from constants
_PAGE = text(f"""
select seq, id, queue from (
    select seq, id, queue, sum(octet_length(message)) over (order by seq) - octet_length(message) as before from (
        select seq, id, queue, message from worker.outbox
        where sent_epoch is not null and seq > :after and {_lies_back("sent_at", "older")}
        order by seq limit {lanes.BATCH}
    ) as long_ago
) as sized where before < {lanes.BATCH_BYTES} order by seq
""")  # noqa: S608 - put together from constants
_MARK_MISSING = text(f"""
with picked as (
    select seq from worker.outbox where seq in ({lanes.numbers("seqs")}) and sent_epoch is not null
    for update skip locked
)
update worker.outbox as o set sent_at = clock_timestamp() from picked where o.seq = picked.seq
returning {lanes.COLUMNS}
""")  # noqa: S608 - put together from constants


class Sweep:
    """One worker's part in the sweeps."""

    def __init__(
        self, engine: AsyncEngine, redis: Redis, *, every: timedelta, older: timedelta, settle: timedelta
    ) -> None:
        """`every`: over all workers. `older`: what was sent so long ago. `settle`: none begins sooner after a wipe."""
        self._engine = engine
        self._pusher = Pusher(engine, redis)
        self._whole: Any = redis.register_script(WHOLE)
        self._every, self._older, self._settle = every, older, settle
        self._is_wanted = True
        self._next_look = 0.0
        self._after: int | None = None
        self._sent_before = older

    def want(self) -> None:
        """Look at everything, as soon as may be: a push has failed, and what is marked as sent may not have arrived."""
        self._is_wanted = True

    async def step(self) -> int | None:
        """Do a page of a sweep and return how many jobs were sent again; None if no sweep is under way or due."""
        if self._after is None and not await self._begin():
            return None
        sent = 0
        async with turn(self._engine) as connection:
            page = (await connection.execute(_PAGE, {"after": self._after, "older": self._sent_before})).all()
            if page:
                places: list[int] = await self._whole(
                    keys=[], args=[part for row in page for part in (row.id, row.queue)]
                )
                missing = [str(page[place - 1].seq) for place in places]
                if missing:
                    rows = await lanes.rows(connection, _MARK_MISSING, seqs=missing)
                    sent = len(rows) - len(await self._pusher.push(rows))
        self._after = page[-1].seq if page else None
        return sent

    async def _begin(self) -> bool:
        if not self._is_wanted and time.monotonic() < self._next_look:
            return False
        when = {"at_once": self._is_wanted, "every": self._every, "settle": self._settle}
        async with brief_transaction(self._engine) as connection:
            await end_stuck(connection)  # what is locked is passed over, and would wait for them
            begun = (await connection.execute(_BEGIN, when)).rowcount == 1
        self._next_look = time.monotonic() + self._every.total_seconds()
        if begun:
            self._after, self._sent_before = 0, timedelta(0) if self._is_wanted else self._older
            self._is_wanted = False
        return begun
