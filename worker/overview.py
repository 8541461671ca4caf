"""What waits, ran and failed, as PostgreSQL knows it. Payloads are read only where they are asked for."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, get_args

from pydantic import JsonValue
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.ledger import FINAL, RunStatus

MAX_FAILURES = 50
"""How many failures of a run are shown, the newest."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One job: its run, or its outbox row where it waits for its first attempt."""

    id: str
    enqueued_ms: int
    name: str
    queue: str
    status: str
    attempt: int
    """Failures counted since the last progress."""
    done: int
    total: int | None
    """Rows, of a chunked job; the total may be an estimate."""
    rate: float | None
    """Rows done in a second of work, smoothed over the last chunks."""
    time_left_s: float | None
    """Seconds of work until the total, as of the last chunk."""
    begun_at: datetime | None
    due_at: datetime | None
    """When it may run next; None where it may now, or is final."""
    finished_at: datetime | None
    error: str | None
    parent_id: str | None
    """Of a partition: the job that it is a part of."""

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after its status."""
        return self.status in FINAL


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt."""

    attempt: int
    failed_at: datetime
    worker: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Details:
    """An entry with all that is kept of it but its payload."""

    entry: Entry
    cursor: JsonValue
    result: JsonValue
    rejects: int
    """Rows that an import refused."""
    failures: tuple[Failure, ...]
    """Oldest first, at most the last 50."""
    partitions: tuple[Entry, ...]


# Of a job with partitions it is theirs, added up; nobody knows the total until each has told its own.
PROGRESS = """
coalesce(parts.done, r.done) as done, coalesce(parts.total, r.total) as total, coalesce(parts.rate, r.rate) as rate,
    case when r.finished_at is null then coalesce(parts.time_left_s, r.time_left_s) end as time_left_s
"""
RUN_WITH_PARTS = """
worker.run as r left join lateral (
    select done, total, rate, case when total >= done then (total - done) / nullif(rate, 0) end as time_left_s from (
        select sum(part.done)::bigint as done, sum(part.rate) filter (where part.finished_at is null) as rate,
            case when count(part.total) = count(*) then sum(part.total)::bigint end as total
        from worker.run as part where part.parent_id = r.id and part.enqueued_ms = r.enqueued_ms
    ) as added_up
) as parts on r.partitions is not null
"""
_RUN = f"""
select r.id, r.enqueued_ms, r.name, r.queue, r.status, r.attempt, {PROGRESS}, r.created_at as begun_at,
    r.next_at as due_at, r.finished_at, r.error, r.parent_id, r.cursor, r.result,
    coalesce(r.finished_at, r.created_at) as at
from {RUN_WITH_PARTS}
"""  # noqa: S608 - put together from constants
# PostgreSQL's calendar goes further than Python's, and a day less is left for the time zone that it is shown in.
_DUE_AT = "least(greatest(o.due_at, timestamptz '0001-01-02 00:00+00'), timestamptz '9999-12-30 00:00+00')"
# Counted: the planner expects a run for each row, and would look at all rows to find the few that have none.
_NOT_BEGUN = f"""
select o.id, o.enqueued_ms, o.name, o.queue, 'waiting', 0::bigint, 0::bigint, null::bigint, null::double precision,
    null::double precision, null::timestamptz,
    case when o.due_at > clock_timestamp() then {_DUE_AT} end, null::timestamptz, null::text, null::text,
    null::jsonb as cursor, null::jsonb as result, case when o.enqueued_ms > 0 then to_timestamp(o.enqueued_ms / 1000.0)
        else {_DUE_AT} end as at
from worker.outbox as o
where (select count(*) from worker.run as b where b.id = o.id and b.enqueued_ms = o.enqueued_ms) = 0
"""  # noqa: S608 - put together from constants

# Each part reads its own index from the new end and stops at the limit, however long the history is, and however much
# waits. That of unfinished runs has an end for each status.
_IS_WANTED = """
(cast(:status as text) is null or status = :status) and (cast(:name as text) is null or name = :name)
    and (cast(:queue as text) is null or queue = :queue) and (cast(:error as text) is null or strpos(error, :error) > 0)
"""
_ENTRIES = text(f"""
({_RUN} where finished_at is not null and coalesce(:status, 'completed') = any(array{sorted(FINAL)}) and {_IS_WANTED}
    order by finished_at desc limit :limit)
union all (
    select unfinished.* from unnest(array{sorted(set(get_args(RunStatus)) - FINAL)}) as each (status)
    cross join lateral (
        {_RUN} where finished_at is null and r.status = each.status and {_IS_WANTED}
        order by created_at desc limit :limit
    ) as unfinished
)
union all ({_NOT_BEGUN} and coalesce(:status, 'waiting') = 'waiting' and cast(:error as text) is null
    and (cast(:name as text) is null or name = :name) and (cast(:queue as text) is null or queue = :queue)
    order by seq desc limit :limit)
order by at desc, id limit :limit
""")  # noqa: S608 - put together from constants

# An id may stand for several jobs, one after another. What hasn't begun is the newest, then what began last.
_NEWEST_ROW = text(f"{_NOT_BEGUN} and id = :id order by seq desc limit 1")
_NEWEST_RUN = text(f"{_RUN} where id = :id order by created_at desc, enqueued_ms desc limit 1")
_FAILURES = text("""
select attempt, failed_at, worker, error, traceback from worker.attempt where id = :id and enqueued_ms = :ms
order by seq desc limit :limit
""")
_PARTITIONS = text(f"{_RUN} where r.parent_id = :id and r.enqueued_ms = :ms order by length(r.id), r.id")
_REJECTS = text("select count(*) from worker.reject where id = :id and enqueued_ms = :ms")
_MESSAGE = text("""
select coalesce(
    (select message from worker.run where id = :id and enqueued_ms = :ms),
    (select message from worker.outbox where id = :id and enqueued_ms = :ms order by seq desc limit 1))
""")


async def entries(
    connection: AsyncConnection,
    *,
    status: str | None = None,
    name: str | None = None,
    queue: str | None = None,
    error: str | None = None,
    limit: int = 50,
) -> list[Entry]:
    """Runs and waiting jobs, newest first: by their end, else their beginning, else when they were enqueued.

    `error`: a part of the error's text.
    """
    wanted = {"status": status, "name": name, "queue": queue, "error": error, "limit": limit}
    rows = await connection.execute(_ENTRIES, wanted)
    return [_entry(row) for row in rows]


async def newest(connection: AsyncConnection, job_id: str) -> Entry | None:
    """The newest job of this id. None: PostgreSQL knows of none."""
    row = await _newest(connection, job_id)
    return _entry(row) if row is not None else None


async def details(connection: AsyncConnection, job_id: str) -> Details | None:
    """All about the newest job of this id. None: PostgreSQL knows of none."""
    row = await _newest(connection, job_id)
    if row is None:
        return None
    key = {"id": row.id, "ms": row.enqueued_ms}
    failures = (await connection.execute(_FAILURES, {**key, "limit": MAX_FAILURES})).all()
    rejects: int = (await connection.execute(_REJECTS, key)).scalar_one()
    partitions = (await connection.execute(_PARTITIONS, key)).all()
    return Details(
        _entry(row),
        row.cursor,
        row.result,
        rejects,
        tuple(Failure(*failure) for failure in reversed(failures)),
        tuple(map(_entry, partitions)),
    )


async def message_of(connection: AsyncConnection, entry: Entry) -> bytes | None:
    """The message's bytes, where PostgreSQL keeps them: while it waits, and where it is dead or cancelled."""
    key = {"id": entry.id, "ms": entry.enqueued_ms}
    message: bytes | None = (await connection.execute(_MESSAGE, key)).scalar_one()
    return message


async def _newest(connection: AsyncConnection, job_id: str) -> Row[Any] | None:
    for query in (_NEWEST_ROW, _NEWEST_RUN):
        row = (await connection.execute(query, {"id": job_id})).one_or_none()
        if row is not None:
            return row
    return None


def _entry(row: Row[Any]) -> Entry:
    return Entry(**{field.name: value for field, value in zip(fields(Entry), row, strict=False)})
