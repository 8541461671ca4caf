"""What people do to dead jobs: replay or discard them. Each is one transaction; cancel has a module of its own.

An id may stand for several jobs, one after another. Where it is named, the newest dead one is meant, whatever came
after it. Of all dead jobs those are replayed that nothing newer of their id replaces, for the payloads of the others
may be out of date; each is discarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker.limits import Rate
from worker.overview import newest
from worker.wire import UNREADABLE_NAME, Message, decode, restamp

BATCH = 100
"""Runs a transaction; each brings its message, up to 1 MiB."""


class UnknownIdError(LookupError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"No job has the id {job_id!r}; worker runs lists those that there are.")


class WrongStatusError(ValueError):
    """The job isn't in a state for it; the text says in which it is."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead jobs are meant; all of them, unless it says more."""

    name: str | None = None
    error: str | None = None
    """A part of the error's text, letter by letter."""

    @property
    def values(self) -> dict[str, str | None]:
        """For the statements that have _IS_WANTED."""
        return {"name": self.name, "error": self.error}


@dataclass(frozen=True, slots=True)
class Done:
    """It is replayed, cancelled or discarded."""

    job_id: str
    name: str


_DEAD = """
select id, enqueued_ms, name, queue, message, finished_at from worker.run as r
where status = 'dead' and parent_id is null
"""
_DEAD_OF_ID = text(f"{_DEAD} and id = :id order by created_at desc, enqueued_ms desc limit 1 for update")
# What hasn't begun is newer than any run, so a run is the newest only where nothing of its id waits.
_NOT_REPLACED = """
not exists (
    select from worker.run as later
    where later.id = r.id and (later.created_at, later.enqueued_ms) > (r.created_at, r.enqueued_ms)
) and not exists (
    select from worker.outbox as o where o.id = r.id
        and not exists (select from worker.run as begun where begun.id = o.id and begun.enqueued_ms = o.enqueued_ms)
)
"""
_IS_WANTED = """
(cast(:name as text) is null or name = :name) and (cast(:error as text) is null or strpos(error, :error) > 0)
"""
# A batch begins where the one before ended: what isn't meant isn't gone through again for each.
_IS_NEXT = "finished_at >= coalesce(cast(:since as timestamptz), '-infinity') and finished_at <= :until"
_DEAD_BATCH = text(f"""
{_DEAD} and {_NOT_REPLACED} and {_IS_WANTED} and {_IS_NEXT}
order by finished_at limit :batch for update skip locked
""")
_COUNT_DEAD = text(f"""
select count(*) from ({_DEAD} and {_IS_WANTED} and (cast(:with_replaced as boolean) or {_NOT_REPLACED})) as dead
""")  # noqa: S608 - put together from constants
_NOW = text("select clock_timestamp()")

# The outbox row comes back under the same identity, and isn't coalesced with others of its id.
_SEND_AGAIN = text("""
insert into worker.outbox (id, enqueued_ms, name, queue, message, due_at)
values (:id, :ms, :name, :queue, :message, coalesce(cast(:due_at as timestamptz), now()))
""")
_WAIT_AGAIN = text("""
update worker.run set status = 'waiting', from_outbox = true, attempt = 0, error = null, message = null,
    next_at = cast(:due_at as timestamptz), finished_at = null
where id = :id and enqueued_ms = :ms
""")
# Of its partitions those that didn't complete.
_SEND_PARTS_AGAIN = text("""
with ended as (
    select id, coalesce(message, :message) as message from worker.run
    where parent_id = :id and enqueued_ms = :ms and status in ('dead', 'cancelled') for update
), again as (
    update worker.run as part set status = 'waiting', attempt = 0, next_at = cast(:due_at as timestamptz),
        error = null, message = null, finished_at = null
    from ended where part.id = ended.id and part.enqueued_ms = :ms returning part.id, ended.message
)
insert into worker.outbox (id, enqueued_ms, name, queue, message, due_at)
select id, :ms, :name, :queue, message, coalesce(cast(:due_at as timestamptz), now()) from again
""")
# Unreadable when it died, and read by now: it runs under the identity that its message tells.
_GIVE_WAY = text("""
update worker.run set status = 'discarded', finished_at = clock_timestamp() where id = :id and enqueued_ms = :died_as
""")
_DISCARD = text("""
update worker.run set status = 'discarded', finished_at = clock_timestamp()
where enqueued_ms = :ms and (id = :id or parent_id = :id) and status = 'dead'
""")
_DISCARD_BATCH = text(f"""
with dead as (
    select id, enqueued_ms, name, finished_at from worker.run
    where status = 'dead' and parent_id is null and {_IS_WANTED} and {_IS_NEXT}
    order by finished_at limit :batch for update skip locked
), meant as (
    select id, enqueued_ms from dead
    union all
    select part.id, part.enqueued_ms from dead join worker.run as part
        on part.parent_id = dead.id and part.enqueued_ms = dead.enqueued_ms
), discarded as (
    update worker.run as r set status = 'discarded', finished_at = clock_timestamp() from meant
    where r.id = meant.id and r.enqueued_ms = meant.enqueued_ms and r.status = 'dead'
)
select id, name, finished_at from dead order by finished_at
""")  # noqa: S608 - put together from constants


async def replay(engine: AsyncEngine, job_id: str) -> Done:
    """Let a dead job run again: the same identity, no failures counted, a chunked one from its cursor.

    Of one with partitions those that didn't complete run again, each from its cursor.

    Raises UnknownIdError or WrongStatusError.
    """
    async with engine.begin() as connection:
        run = await _dead(connection, job_id)
        await _replay(connection, [run], [None])
    return Done(run.id, run.name)


async def count_dead(engine: AsyncEngine, wanted: Wanted, *, with_replaced: bool) -> int:
    """How many jobs `replay_all` would take; with those that a newer one replaces, how many `discard_all` would."""
    values = {**wanted.values, "with_replaced": with_replaced}
    async with engine.connect() as connection:
        count: int = (await connection.execute(_COUNT_DEAD, values)).scalar_one()
    return count


async def replay_all(engine: AsyncEngine, wanted: Wanted = Wanted(), rate: Rate | None = None) -> list[Done]:
    """Replay every job that is dead now, meant, and not replaced by a newer one, oldest first, a batch a transaction.

    With a `rate` the first is due now, and each other a moment after the one before. What somebody else holds is left.
    """
    done: list[Done] = []
    gap = rate.per / rate.count if rate else None
    given = await _all_that_are_dead(engine, wanted)
    until: datetime = given["until"]
    while True:
        async with engine.begin() as connection:
            runs = (await connection.execute(_DEAD_BATCH, given)).all()
            if not runs:
                return done
            dues = [until + gap * (len(done) + place) if gap else None for place in range(len(runs))]
            await _replay(connection, runs, dues)
        done += [Done(run.id, run.name) for run in runs]
        given["since"] = runs[-1].finished_at


async def discard(engine: AsyncEngine, job_id: str) -> Done:
    """Put a dead job aside for good: it can't be replayed any more. Raises UnknownIdError or WrongStatusError."""
    async with engine.begin() as connection:
        run = await _dead(connection, job_id)
        await connection.execute(_DISCARD, {"id": run.id, "ms": run.enqueued_ms})
    return Done(run.id, run.name)


async def discard_all(engine: AsyncEngine, wanted: Wanted = Wanted()) -> list[Done]:
    """Discard every job that is dead now and meant, oldest first, a batch a transaction.

    Those that a newer one of their id replaces are meant too. What somebody else holds is left.
    """
    done: list[Done] = []
    given = await _all_that_are_dead(engine, wanted)
    while True:
        async with engine.begin() as connection:
            runs = (await connection.execute(_DISCARD_BATCH, given)).all()
        if not runs:
            return done
        done += [Done(run.id, run.name) for run in runs]
        given["since"] = runs[-1].finished_at


async def _all_that_are_dead(engine: AsyncEngine, wanted: Wanted) -> dict[str, Any]:
    """Parameters of the first batch. `since` of each other is when the last one's last job ended."""
    async with engine.connect() as connection:
        now: datetime = (await connection.execute(_NOW)).scalar_one()
    return {**wanted.values, "since": None, "until": now, "batch": BATCH}


async def _dead(connection: AsyncConnection, job_id: str) -> Row[Any]:
    run = (await connection.execute(_DEAD_OF_ID, {"id": job_id})).one_or_none()
    if run is None:
        found = await newest(connection, job_id)
        if found is None:
            raise UnknownIdError(job_id)
        if found.parent_id is not None:
            raise WrongStatusError(f"The job {job_id} is a partition; name the whole job, {found.parent_id}.")
        raise WrongStatusError(f"The job {job_id} is {found.status}; only a dead one can be replayed or discarded.")
    return run


async def _replay(connection: AsyncConnection, runs: Sequence[Row[Any]], dues: Sequence[datetime | None]) -> None:
    """`dues`: when each may run; None: at once."""
    rows = [_row(run, due) for run, due in zip(runs, dues, strict=True)]
    await connection.execute(_SEND_AGAIN, rows)
    again = [row for row in rows if row["ms"] == row["died_as"]]
    for row in again:
        await connection.execute(_SEND_PARTS_AGAIN, row)
    if again:
        await connection.execute(_WAIT_AGAIN, [{key: row[key] for key in ("id", "ms", "due_at")} for row in again])
    for row in (row for row in rows if row["ms"] != row["died_as"]):
        await connection.execute(_GIVE_WAY, {"id": row["id"], "died_as": row["died_as"]})


def _row(run: Row[Any], due: datetime | None) -> dict[str, Any]:
    message, name, enqueued_ms = decode(run.message), run.name, run.enqueued_ms
    if name == UNREADABLE_NAME and isinstance(message, Message):
        name, enqueued_ms = message.name, message.enqueued_ms
    return {
        "id": run.id,
        "ms": enqueued_ms,
        "died_as": run.enqueued_ms,
        "name": name,
        "queue": run.queue,
        "message": restamp(run.message, enqueued_ms=enqueued_ms),
        "due_at": due,
    }
