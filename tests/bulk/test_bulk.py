"""What the helpers write, and that it is the session's transaction that they write in."""

import asyncio
import enum
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ARRAY, JSON, BigInteger, Column, Enum, Integer, MetaData, Table, Text, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.schema import CreateTable

from jobs.users.models import User
from tests.support.waiting import wait_until
from worker.app import App
from worker.bulk import Upserted, copy_csv, copy_ndjson, copy_rows, update_many, updating, upsert
from worker.errors import SessionMisuse
from worker.handler import Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.outcome import Completed, Outcome, Retrying
from worker.testing import drain, perform

COLUMNS = [User.email, User.name]
USERS = text("select email, name from users order by id")
WAITING = text("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")


class Copy(Job, name="bulk.copy"):
    """Copy two users first thing, and then fail, maybe."""

    fails: bool = False


async def copying(job: Copy, session: AsyncSession) -> int:
    copied = await copy_rows(session, User, COLUMNS, [("a@x", "A"), ("b@x", "B")])
    if job.fails:
        raise ValueError("after the COPY")
    return copied


COPYING = App(handlers=[Handler(Copy, copying)])


async def users(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with engine.connect() as connection:
        return [(email, name) for email, name in await connection.execute(USERS)]


async def outcome_of(engine: AsyncEngine, app: App, job: Job) -> Outcome:
    async with AsyncSession(engine) as session, session.begin():
        enqueue(session, job)
    [(_, outcome)] = await drain(app, engine)
    return outcome


async def test_a_copy_that_a_handler_begins_with_is_rolled_back_with_it(engine: AsyncEngine) -> None:
    assert isinstance(await outcome_of(engine, COPYING, Copy(fails=True)), Retrying)
    assert await users(engine) == []


async def test_a_copy_commits_with_its_job(engine: AsyncEngine) -> None:
    assert await outcome_of(engine, COPYING, Copy()) == Completed(2)
    assert await users(engine) == [("a@x", "A"), ("b@x", "B")]


@pytest.fixture
async def plain(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine as a web application makes it, with nothing of the runtime."""
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://", 1))
    yield engine
    await engine.dispose()


async def test_a_copy_is_rolled_back_in_a_plain_session_whose_first_statement_it_is(plain: AsyncEngine) -> None:
    async with AsyncSession(plain) as session:
        assert await copy_rows(session, User, COLUMNS, [("a@x", "A")]) == 1
        await session.rollback()
        assert await users(plain) == []
        await copy_rows(session, User, COLUMNS, [("b@x", "B")])
        await session.commit()
    assert await users(plain) == [("b@x", "B")]


async def test_a_copy_in_a_savepoint_is_rolled_back_with_the_savepoint(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await copy_rows(session, User, COLUMNS, [("a@x", "A")])
        with pytest.raises(asyncpg.UniqueViolationError):
            async with session.begin_nested():
                await copy_rows(session, User, COLUMNS, [("b@x", "B"), ("A@X", "again")])
    assert await users(engine) == [("a@x", "A")]


async def test_they_work_in_the_testing_kit_and_see_what_the_session_has_not_flushed(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(User(email="first@x", name="First"))
        assert await perform(COPYING, Copy(), session) == 2
        assert (await session.scalars(select(User.email).order_by(User.id))).all() == ["first@x", "a@x", "b@x"]


async def test_without_a_transaction_they_are_refused(plain: AsyncEngine) -> None:
    async with AsyncSession(plain.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
            await copy_rows(session, User, COLUMNS, [("a@x", "A")])
    assert await users(plain) == []


async def test_a_second_task_of_a_handler_is_refused(engine: AsyncEngine) -> None:
    raised: list[str] = []

    async def sharing(job: Copy, session: AsyncSession) -> None:
        await session.execute(select(1))
        try:
            await asyncio.create_task(copying(job, session))
        except SessionMisuse as misuse:
            raised.append(str(misuse))

    await outcome_of(engine, App(handlers=[Handler(Copy, sharing)]), Copy())
    assert "second task" in raised[0]
    assert await users(engine) == []


class Colour(enum.Enum):
    RED = "r"


KINDS = Table(
    "kind of thing",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("the key", Text, unique=True),
    Column("colour", Enum(Colour, native_enum=False)),
    Column("about", JSON),
)


async def test_values_are_converted_as_their_columns_would_and_names_are_quoted(engine: AsyncEngine) -> None:
    kinds, about = KINDS.c, {"deep": [1, None]}
    async with AsyncSession(engine) as session, session.begin():
        await session.run_sync(lambda sync: KINDS.create(sync.connection()))
        await copy_rows(session, KINDS, list(kinds), [(1, "one", Colour.RED, about), (2, "two", None, None)])
        rows = [("two", Colour.RED, about), ("three", None, about)]
        columns = [kinds["the key"], kinds.colour, kinds.about, kinds.id]
        given = [(*row, number) for number, row in enumerate(rows, start=2)]
        done = await upsert(session, KINDS, columns, given, key=[kinds["the key"]], returning=[kinds.id])
        assert sorted(tuple(row) for row in done.rows) == [(2, False), (3, True)]
        assert await update_many(session, KINDS, [kinds.id, kinds.about], [(1, {"new": True})]) == 1
        found = await session.execute(select(KINDS).order_by(kinds.id))
        assert [tuple(row) for row in found] == [
            (1, "one", Colour.RED, {"new": True}),
            (2, "two", Colour.RED, about),
            (3, "three", None, about),
        ]


async def test_an_upsert_counts_by_key_and_the_last_row_of_a_key_wins(engine: AsyncEngine) -> None:
    key = [func.lower(User.email)]
    async with AsyncSession(engine) as session, session.begin():
        rows = [("b@x", "B"), ("a@x", "A"), ("B@X", "Bee")]
        assert await upsert(session, User, COLUMNS, iter(rows), key=key) == Upserted(2, 0)
        assert await upsert(session, User, COLUMNS, [("c@x", "C"), ("A@x", "Ay")], key=key) == Upserted(1, 1)
        assert await upsert(session, User, COLUMNS, [], key=key) == Upserted(0, 0)
        kept = await upsert(session, User, COLUMNS, [("c@x", "?")], key=key, also={User.name: User.name + "!"})
        assert kept == Upserted(0, 1)
    assert await users(engine) == [("A@x", "Ay"), ("B@X", "Bee"), ("c@x", "C!")]


@pytest.mark.usefixtures("either_way")
async def test_an_update_sets_each_row_by_key_and_skips_unknown_keys(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await copy_rows(session, User, COLUMNS, [("a@x", "A"), ("b@x", "B")])
        ids = (await session.scalars(select(User.id).order_by(User.id))).all()
        rows = [(ids[1], "first"), (ids[0], "Ay"), (0, "nobody"), (ids[1], "Bee")]
        before = (await session.execute(text("show enable_seqscan"))).scalar_one()
        assert await update_many(session, User, [User.id, User.name], rows) == 2
        assert await update_many(session, User, [User.id, User.name], []) == 0
        assert (await session.execute(text("show enable_seqscan"))).scalar_one() == before
    assert await users(engine) == [("a@x", "Ay"), ("b@x", "Bee")]


@pytest.mark.parametrize("columns", [[User.id], [User.name], [User.id, User.name, User.name]])
async def test_an_update_with_wrong_columns_is_refused(engine: AsyncEngine, columns: list[Any]) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(ValueError, match="each column of its primary key"):
            await update_many(session, User, columns, [])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("unknown", [[], [10**6]], ids=["alike", "the second with a gap"])
async def test_two_updates_of_the_same_rows_in_opposite_order_never_deadlock(
    engine: AsyncEngine, unknown: list[int]
) -> None:
    """Both meet a row in the middle that is locked. Were they to take their rows as given, each would then hold what
    the other waits for. Staged rows whose keys have a gap are taken by another join.
    """
    async with AsyncSession(engine) as session, session.begin():
        await copy_rows(session, User, COLUMNS, [(f"{number}@x", "?") for number in range(101)])
        ids = (await session.scalars(select(User.id).order_by(User.id))).all()

    async def update(order: list[int], name: str) -> int:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("set local deadlock_timeout = '50ms'"))
            await session.execute(text("set local lock_timeout = 0"))
            return await update_many(session, User, [User.id, User.name], [(user_id, name) for user_id in order])

    async def both_wait() -> bool:
        async with engine.connect() as connection:
            return bool((await connection.execute(WAITING)).scalar_one() == 2)

    async with engine.connect() as holder:
        await holder.execute(select(User.id).where(User.id == ids[50]).with_for_update())
        updates = [
            asyncio.create_task(update(list(ids), "up")),
            asyncio.create_task(update([*reversed(ids), *unknown], "down")),
        ]
        await wait_until(both_wait)
        await holder.rollback()
        assert await asyncio.gather(*updates) == [101, 101]
    assert len({name for _, name in await users(engine)}) == 1


async def test_two_upserts_of_the_same_rows_in_opposite_order_never_deadlock(engine: AsyncEngine) -> None:
    """As above: in key order one of them waits for the row that is locked, and the other for the one before it."""
    emails = [f"{number:03}@x" for number in range(101)]
    async with AsyncSession(engine) as session, session.begin():
        await copy_rows(session, User, COLUMNS, [(email, "?") for email in emails])

    async def put(order: list[str], name: str) -> Upserted:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("set local deadlock_timeout = '50ms'"))
            await session.execute(text("set local lock_timeout = 0"))
            rows = [(email, name) for email in order]
            return await upsert(session, User, COLUMNS, rows, key=[func.lower(User.email)])

    async def both_wait() -> bool:
        async with engine.connect() as connection:
            return bool((await connection.execute(WAITING)).scalar_one() == 2)

    async with engine.connect() as holder:
        await holder.execute(select(User.id).where(User.email == emails[50]).with_for_update())
        upserts = [asyncio.create_task(put(emails, "up")), asyncio.create_task(put(emails[::-1], "down"))]
        await wait_until(both_wait)
        await holder.rollback()
        assert await asyncio.gather(*upserts) == [Upserted(0, 101), Upserted(0, 101)]
    assert len({name for _, name in await users(engine)}) == 1


@pytest.mark.parametrize("with_upsert", [False, True], ids=["copy_rows", "upsert"])
async def test_a_column_whose_type_has_changed_is_never_written_in_the_old_one(
    plain: AsyncEngine, *, with_upsert: bool
) -> None:
    """asyncpg remembers the types of the tables that it copies into, and would send a float's bytes for a number."""
    counted = Table("counted", MetaData(), Column("id", BigInteger, primary_key=True), Column("n", BigInteger))

    async def write(number: int) -> None:
        async with AsyncSession(plain) as session, session.begin():
            if with_upsert:
                await upsert(session, counted, [counted.c.id, counted.c.n], [(number, 100)], key=[counted.c.id])
            else:
                await copy_rows(session, counted, [counted.c.id, counted.c.n], [(number, 100)])

    async with plain.begin() as connection:
        await connection.execute(text("create table counted (id bigint primary key, n double precision)"))
    await write(1)
    async with plain.begin() as connection:
        await connection.execute(text("alter table counted alter n type bigint"))
    with pytest.raises(DBAPIError, match="cached statement plan is invalid"):
        await write(2)
    await write(2)  # as the job's next attempt does
    async with plain.connect() as connection:
        assert (await connection.execute(text("select n from counted"))).scalars().all() == [100, 100]


async def test_two_tables_of_one_name_are_two(plain: AsyncEngine) -> None:
    async with AsyncSession(plain) as session:
        await session.execute(text("create schema other"))
        for schema, kind, value in (("public", Text(), "a"), ("other", BigInteger(), 1)):
            named = Table(
                "named", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", kind), schema=schema
            )
            await session.execute(CreateTable(named))
            assert await upsert(session, named, [named.c.id, named.c.v], [(1, value)], key=[named.c.id]) == Upserted(
                1, 0
            )


@pytest.mark.usefixtures("either_way")
async def test_an_update_sets_arrays_and_enums_and_one_after_another(plain: AsyncEngine) -> None:
    kind = Enum(Colour, name="colour")
    things = Table(
        "things", MetaData(), Column("id", Integer, primary_key=True), Column("tags", ARRAY(Text)), Column("kind", kind)
    )
    async with AsyncSession(plain) as session:
        await session.run_sync(lambda sync: things.create(sync.connection()))
        await session.execute(insert(things), [{"id": 1}, {"id": 2}])
        tagged = [(2, ["b", "c"]), (1, None)]
        assert await update_many(session, things, [things.c.id, things.c.tags], tagged) == 2
        assert await update_many(session, things, [things.c.id, things.c.kind], [(1, Colour.RED), (2, None)]) == 2
        found = await session.execute(select(things).order_by(things.c.id))
        assert [tuple(row) for row in found] == [(1, None, Colour.RED), (2, ["b", "c"], None)]


async def test_an_update_that_the_driver_cant_send_leaves_the_planner_as_it_was(plain: AsyncEngine) -> None:
    small = Table("small", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
    async with AsyncSession(plain) as session:
        await session.execute(CreateTable(small))
        with pytest.raises(DBAPIError):
            await update_many(session, small, [small.c.id, small.c.n], [(1, 2**40)])
        assert (await session.execute(text("show enable_seqscan"))).scalar_one() == "on"


HOME = Table("home", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", Text))


async def test_they_heed_the_connections_map_of_schemas(plain: AsyncEngine) -> None:
    """Of the two tables of one name the tenant's is meant, whose column has another type."""
    columns, key = list(HOME.c), [HOME.c.id]
    async with plain.begin() as connection:
        await connection.execute(text("create schema tenant"))
        for table in ("home (id bigint primary key, v integer)", "tenant.home (id bigint primary key, v text)"):
            await connection.execute(text(f"create table {table}"))
    written = bytearray()
    async with AsyncSession(plain.execution_options(schema_translate_map={None: "tenant"})) as session:
        assert await copy_rows(session, HOME, columns, [(1, "a"), (2, "b")]) == 2
        assert await upsert(session, HOME, columns, [(2, "c"), (3, "d")], key=key) == Upserted(1, 1)
        rows = [(number, "e") for number in range(3, updating.STAGED_FROM + 3)]
        assert await update_many(session, HOME, columns, rows) == 1
        assert await copy_csv(session, select(HOME).order_by(HOME.c.id), written.extend, header=False) == 3
        assert await copy_ndjson(session, select(HOME).where(HOME.c.id == 1), written.extend) == 1
        assert (await session.execute(text("select * from tenant.home order by id"))).all() == [
            (1, "a"), (2, "c"), (3, "e"),
        ]  # fmt: skip
        assert (await session.execute(text("select * from public.home"))).all() == []
    assert written == b'1,a\n2,c\n3,e\n{"id":1,"v":"a"}\n'
