"""Which rows of the outbox may be sent. Three lanes, each a statement that picks rows, marks and returns them.

Plain: the id is the row's own. Coalescing: others may carry it too. Again: an earlier Redis was sent it.
"""

from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

BATCH, BATCH_BYTES = 500, 8 * 1024 * 1024
"""Of one statement: at most so many rows, and so many bytes of messages. The first comes whatever its size."""

# Due by PostgreSQL's clock; a run that backs off or snoozes says so itself.
COLUMNS = """
o.seq, o.id, o.queue, o.enqueued_ms, o.message, o.coalesces, o.sent_epoch is not null as is_marked,
greatest(0, ceil(1000 * extract(epoch from greatest(o.due_at,
    (select next_at from worker.run as r where r.id = o.id and r.enqueued_ms = o.enqueued_ms)
) - clock_timestamp())))::bigint as delay_ms
"""


def _others(condition: str) -> str:
    """How many rows of the id meet `condition`.

    Counted, since a planner that knows little of the table would look for the first of them without the index of ids.
    """
    return f"(select count(*) from worker.outbox as s where s.id = o.id and {condition})"  # noqa: S608 - constants


_IS_FREE = f"{_others('s.sent_epoch is not null')} = 0"
# The first by the index of ids, which alone has this order. An id may have 100,000 rows, and each of them asks.
_HAS_MORE = """
(select count(*) from (
    select from worker.outbox as s where s.id = o.id and s.seq <> o.seq and s.sent_epoch is null and s.coalesces
    order by s.enqueued_ms limit 1
) as another) > 0
"""


def numbers(parameter: str) -> str:
    """A select of the numbers in an array of texts.

    For an array of numbers asyncpg asks each connection what those are, which takes it 4 to 10 ms.
    """
    return f"select cast(unnest(cast(:{parameter} as text[])) as bigint)"


_WASNT_REFUSED = f"o.seq not in ({numbers('refused')})"

PLAIN = f"o.sent_epoch is null and not o.coalesces and {_WASNT_REFUSED} and {_IS_FREE}"
# statement_timestamp, since no index serves a volatile function.
DUE = "o.sent_epoch is null and o.coalesces and o.due_at <= statement_timestamp()"
# What isn't free is picked as well where there is something to coalesce: so one row waits, however many come.
COALESCING = f"{DUE} and {_WASNT_REFUSED} and ({_IS_FREE} or {_HAS_MORE})"
AGAIN = f"o.sent_epoch < :epoch and {_WASNT_REFUSED}"

LOOK = text(f"""
select
    exists (select from worker.outbox as o where {COALESCING}) as coalescing,
    exists (select from worker.outbox as o where {AGAIN}) as again,
    array(select o.id from worker.outbox as o where {DUE} order by o.due_at limit {BATCH}) as waiting
""")  # noqa: S608 - put together from the constants above


def _mark_in_order(condition: str, order: str) -> TextClause:
    """Mark as many as make a batch, one of each id. Rows that another relay holds are passed over."""
    return text(f"""
    with picked as (
        select o.seq, o.id, octet_length(o.message) as bytes from worker.outbox as o where {condition}
        order by {order} limit {BATCH} for update skip locked
    ), sized as (
        select seq, row_number() over (partition by id order by seq) as place,
            sum(bytes) over (order by seq) - bytes as before
        from picked
    )
    update worker.outbox as o set sent_epoch = :epoch, sent_at = clock_timestamp() from sized
    where o.seq = sized.seq and place = 1 and before < {BATCH_BYTES} returning {COLUMNS}
    """)  # noqa: S608 - put together from the constants above


MARK_PLAIN = _mark_in_order(PLAIN, "o.seq")
MARK_AGAIN = _mark_in_order(AGAIN, "o.sent_epoch, o.seq")

# Of several unsent rows of one id the newest stays, with the earliest due time; of one chosen `job_id`, the oldest.
# A row that isn't later than its id's last run is given the next millisecond, or it would be that run's duplicate.
# (offset 0: for each id its rows, through the index; never the whole table for a few.)
MARK_COALESCING = text(f"""
with due as (
    select distinct id from (
        select o.id from worker.outbox as o where {COALESCING} order by o.due_at limit {BATCH}
    ) as first_ones
), ranked as (
    select rows.*, min(rows.due_at) over same as earliest,
        row_number() over (same order by case when rows.enqueued_ms = 0 then rows.seq else -rows.seq end) as place
    from due cross join lateral (
        select o.seq, o.id, o.enqueued_ms, o.due_at, octet_length(o.message) as bytes, {_IS_FREE} as is_free
        from worker.outbox as o where o.id = due.id and o.sent_epoch is null and o.coalesces offset 0
    ) as rows
    window same as (partition by rows.id)
), gone as (
    delete from worker.outbox as o using ranked where o.seq = ranked.seq and ranked.place > 1
), kept as (
    select seq, earliest,
        is_free and sum(bytes) filter (where is_free) over (order by seq) - bytes < {BATCH_BYTES} as may_go,
        (select max(r.enqueued_ms) from worker.run as r where r.id = ranked.id) as last_ms
    from ranked where place = 1
)
update worker.outbox as o set due_at = kept.earliest,
    sent_epoch = case when may_go then cast(:epoch as bigint) end,
    sent_at = case when may_go then clock_timestamp() end,
    enqueued_ms = case when not may_go or o.enqueued_ms = 0 then o.enqueued_ms
        else greatest(o.enqueued_ms, last_ms + 1) end
from kept where o.seq = kept.seq returning {COLUMNS}
""")  # noqa: S608 - put together from the constants above

UNMARK = text(f"update worker.outbox set sent_epoch = :before, sent_at = null where seq in ({numbers('seqs')})")  # noqa: S608 - as above


async def rows(connection: AsyncConnection, statement: TextClause, **parameters: Any) -> list[Row[Any]]:
    """The rows (COLUMNS) that a statement marked, oldest first."""
    found = await connection.execute(statement, parameters)
    return sorted(found.all(), key=lambda row: row.seq)
