"""Chunk: a long job in many transactions, which resumes after the last that committed."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from tests.guide.steps import add_user, commit, run_of, skip_waits
from worker.app import App
from worker.bulk import copy_rows, update_many, upsert
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler, Handler
from worker.job import Job
from worker.keys import evenly, within
from worker.outcome import Completed, Retrying
from worker.overview import details
from worker.testing import drain, perform


class Deactivate(Job, name="users.deactivate"):
    """Deactivate all users who weren't seen since."""

    since: datetime


async def deactivate(job: Deactivate, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    """The next users after the cursor: no loop, no commit, no checkpoint."""
    due = (
        select(User.id)
        .where(User.is_active, User.last_seen_at < job.since, *within(User.id, chunk))
        .order_by(User.id)
        .limit(chunk.size)
    )
    changed = update(User).where(User.id.in_(due)).values(is_active=False).returning(User.id)
    ids = (await session.scalars(changed)).all()
    return chunk.step(max(ids, default=None), done=len(ids), counts={"deactivated": len(ids)})


app = App(handlers=[ChunkedHandler(Deactivate, deactivate, cursor=int, size=2)])


async def test_chunk_after_chunk_until_the_cursor_is_none(engine: AsyncEngine) -> None:
    await five_users(engine)
    job_id = await commit(engine, Deactivate(since=datetime.now(UTC)))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed({"deactivated": 5})  # the counts of all chunks, added up
    run = await run_of(engine, job_id)
    assert (run.status, run.done) == ("completed", 5)
    assert await active(engine) == []


async def test_it_resumes_after_the_last_chunk_that_committed(engine: AsyncEngine) -> None:
    first, second, third, *_ = await five_users(engine)
    cursors: list[int | None] = []

    async def stumbles_once(job: Deactivate, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        cursors.append(chunk.cursor)
        step = await deactivate(job, session, chunk)
        if cursors == [None, second]:
            raise ConnectionError("in the second chunk")
        return step

    stumbling = App(handlers=[ChunkedHandler(Deactivate, stumbles_once, cursor=int, size=2)])
    await commit(engine, Deactivate(since=datetime.now(UTC)))
    [(_, outcome)] = await drain(stumbling, engine)
    assert isinstance(outcome, Retrying)
    assert first not in await active(engine)
    assert third in await active(engine)

    await skip_waits(engine)
    [(_, outcome)] = await drain(stumbling, engine)
    assert outcome == Completed({"deactivated": 5})
    assert cursors[:3] == [None, second, second]  # the second chunk again, and not the first


async def test_a_step_may_carry_more_than_counts(session: AsyncSession) -> None:
    """`result` stands beside the counts, such as the path of a file that was written; `total` tells the progress."""

    async def counts_nothing(job: Deactivate, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        return chunk.step(None, total=0, counts={"deactivated": 0}, result={"report": "none.csv"})

    told = App(handlers=[ChunkedHandler(Deactivate, counts_nothing, cursor=int)])
    result = await perform(told, Deactivate(since=datetime.now(UTC)), session)
    assert result == {"deactivated": 0, "report": "none.csv"}


def test_a_chunk_holds_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="give at least 1"):
        ChunkedHandler(Deactivate, deactivate, cursor=int, size=0)


class DeactivateEverywhere(Deactivate, name="users.deactivate_everywhere"):
    """The same, by several workers at once."""


split = App(
    handlers=[ChunkedHandler(DeactivateEverywhere, deactivate, cursor=int, partitions=4, split=evenly(User.id))],
)


async def test_partitions_are_jobs_of_their_own_and_the_whole_has_their_counts(engine: AsyncEngine) -> None:
    await five_users(engine)
    job_id = await commit(engine, DeactivateEverywhere(since=datetime.now(UTC)))
    outcomes = [outcome for _, outcome in await drain(split, engine)]
    assert outcomes[-1] == Completed({"deactivated": 5})
    assert await active(engine) == []
    async with engine.connect() as connection:
        found = await details(connection, job_id)
    assert found is not None
    assert [part.id for part in found.partitions] == [f"{job_id}:{number}" for number in (1, 2, 3, 4)]
    assert sum(part.done for part in found.partitions) == found.entry.done == 5


def test_the_size_of_a_chunk_adapts_between_bounds() -> None:
    handler = ChunkedHandler(
        Deactivate,
        deactivate,
        cursor=int,
        size=1_000,  # of the first chunk
        target=timedelta(seconds=1),  # time of a chunk; None: the size stays
        min_size=100,  # a tenth of size, unless given
        max_size=10_000,  # ten times size, unless given
        yield_after=timedelta(seconds=30),
    )
    default = ChunkedHandler(Deactivate, deactivate, cursor=int)
    assert (handler.sizes, handler.yield_after) == (default.sizes, default.yield_after)


async def five_users(engine: AsyncEngine) -> list[int]:
    return [await add_user(engine, f"user{number}@example.com") for number in range(5)]


async def active(engine: AsyncEngine) -> list[int]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(User.id).where(User.is_active)))


class Rename(Job, name="users.rename_many"):
    """Give users new names."""

    names: list[tuple[int, str]]


async def rename_many(job: Rename, session: AsyncSession) -> int:
    return await update_many(session, User, [User.id, User.name], job.names)


async def add_users(session: AsyncSession, rows: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Insert those whose address is new, and rename the others."""
    done = await upsert(session, User, [User.email, User.name], rows, key=[func.lower(User.email)])
    return done.inserted, done.updated


async def test_many_rows_are_written_in_few_statements(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        assert await copy_rows(session, User, [User.email, User.name], [("a@x", "A"), ("b@x", "B")]) == 2
        assert await add_users(session, [("A@x", "Ay"), ("c@x", "C")]) == (1, 1)
        ids = (await session.scalars(select(User.id).order_by(User.email))).all()
        assert await perform(renaming, Rename(names=[(ids[0], "Ann")]), session) == 1
        assert set(await session.scalars(select(User.name))) == {"Ann", "B", "C"}


renaming = App(handlers=[Handler(Rename, rename_many)])
