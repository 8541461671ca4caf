"""What `update_many` and `upsert` do with tables, keys and values of some kinds, and the order in which they write."""

import enum
from decimal import Decimal
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    NCHAR,
    BigInteger,
    Column,
    ColumnElement,
    Dialect,
    Enum,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import BIT, DOMAIN, INT4MULTIRANGE, MACADDR, MONEY, TSVECTOR, Range
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

from worker.bulk import Upserted, copy_rows, update_many, upsert
from worker.bulk.target import TargetColumn

META = MetaData()
BY_NUMBER = Table("by_number", META, Column("id", BigInteger, primary_key=True), Column("v", Text))
BY_TEXT = Table("by_text", META, Column("id", Text, primary_key=True), Column("v", Text))
BY_TWO = Table(
    "by_two",
    META,
    Column("v", Text),
    Column("a", BigInteger, primary_key=True),
    Column("b", CHAR(6), primary_key=True),
)


class Kind(enum.Enum):
    BIG = "big"
    SMALL = "small"


PRICES = Table(
    "prices",
    META,
    Column("sku", BigInteger, primary_key=True),
    Column("kind", Enum(Kind, name="price_kind"), primary_key=True),
    Column("v", Text),
)
SHORT = Table("short", META, Column("id", CHAR(2), primary_key=True), Column("v", String(3)))
COLLATED = Table("collated", META, Column("id", Text(collation="C"), primary_key=True), Column("v", String(9, "C")))
TOKENS = Table("tokens", META, Column("id", Text, primary_key=True), Column("token", Text, default=lambda: "the same"))
TOUCHED = Table(
    "touched",
    META,
    Column("id", BigInteger, primary_key=True),
    Column("v", Text),
    Column("touched", Text, onupdate=func.upper("yes")),
)
PARTED = Table(
    "parted",
    META,
    Column("id", BigInteger, primary_key=True),
    Column("v", Text),
    postgresql_partition_by="RANGE (id)",
)


class Base(DeclarativeBase):
    pass


class Payment(Base):
    """Shares its table with its subclass."""

    __tablename__ = "payment"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "payment"}  # noqa: RUF012 - SQLAlchemy's own form

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str | None]


class Refund(Payment):
    __mapper_args__ = {"polymorphic_identity": "refund"}  # noqa: RUF012 - SQLAlchemy's own form


def keys(table: Table) -> list[tuple[Any, ...]]:
    if table is BY_TWO:
        return [(a, f"b{b}") for a in range(20) for b in range(20)]
    return [(f"k{number}" if table is BY_TEXT else number,) for number in range(400)]


@pytest.mark.parametrize("table", [BY_NUMBER, BY_TEXT, BY_TWO], ids=lambda table: table.name)
async def test_rows_are_written_in_the_order_of_their_key(engine: AsyncEngine, table: Table) -> None:
    """A new version of a row goes behind those that the transaction has written before."""
    key, given = list(table.primary_key.columns), keys(table)
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(table))
        await copy_rows(session, table, [*key, table.c.v], [(*values, "old") for values in given])
        new = [(*values, f"new {values}") for values in reversed(given)]
        assert await update_many(session, table, [*key, table.c.v], new) == 400
        written = (await session.execute(select(*key, table.c.v).order_by(text("ctid")))).all()
        by_key = (await session.execute(select(*key).order_by(*key))).all()
    assert [tuple(row[:-1]) for row in written] == [tuple(row) for row in by_key]
    assert {row.v for row in written} == {row[-1] for row in new}


async def test_a_text_that_is_too_long_is_refused_and_not_cut(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(SHORT))
        columns = list(SHORT.c)
        await copy_rows(session, SHORT, columns, [("a", "old")])
        with pytest.raises((DBAPIError, asyncpg.PostgresError), match="too long"):
            async with session.begin_nested():
                await update_many(session, SHORT, columns, [("a", "longer")])
        assert await update_many(session, SHORT, columns, [("a", "new"), ("b", "?")]) == 1
        assert (await session.execute(select(SHORT))).all() == [("a ", "new")]


@pytest.mark.parametrize(
    ("kind", "value"), [(CHAR(), "ab"), (NCHAR(1), "ab"), (BIT(2), asyncpg.BitString.frombytes(b"\xa0", 3))]
)
@pytest.mark.parametrize("rows", [1, 5_000])
async def test_nothing_that_is_too_long_for_its_type_is_cut(
    engine: AsyncEngine, kind: TypeEngine[Any], value: object, rows: int
) -> None:
    table = Table("kinds", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", kind))
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(table))
        await copy_rows(session, table, [table.c.id], [(n,) for n in range(rows)])
        with pytest.raises((DBAPIError, asyncpg.PostgresError), match=r"too long|length 3"):
            async with session.begin_nested():
                await update_many(session, table, list(table.c), [(n, value) for n in range(rows)])


class Folded(TypeDecorator[str]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's own
        return value and value.casefold()


@pytest.mark.parametrize(
    ("kind", "earlier", "later"),
    [
        (CHAR(3), "a", "a "),
        (Numeric(9, 2), Decimal("1.001"), Decimal("1.002")),
        (Uuid(as_uuid=False), "0000000000000000000000000000000A", "0000000000000000000000000000000a"),
        (Folded(), "A", "a"),
    ],
    ids=["char", "numeric", "uuid", "decorated"],
)
@pytest.mark.usefixtures("either_way")
async def test_of_two_keys_that_are_one_to_postgresql_alone_the_last_row_wins(
    engine: AsyncEngine,
    kind: TypeEngine[Any],
    earlier: object,
    later: object,
) -> None:
    table = Table("kinds", MetaData(), Column("id", kind, primary_key=True), Column("v", Text))
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(table))
        await copy_rows(session, table, list(table.c), [(later, "old")])
        for keys in ((earlier, later), (later, earlier)):
            rows = [(keys[0], "first"), (keys[1], "last")]
            assert await update_many(session, table, list(table.c), rows) == 1
            assert (await session.scalars(select(table.c.v))).all() == ["last"]


class Tags(TypeDecorator[list[str]]):
    impl = ARRAY(Text)
    cache_ok = True


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Tags(), ["a", "b"]),
        (DOMAIN("tags", ARRAY(Text)), ["a", "b"]),
        (INT4MULTIRANGE(), [Range(1, 3), Range(5, 7)]),
    ],
    ids=["decorated", "domain", "multirange"],
)
async def test_an_update_of_a_few_rows_sets_what_is_an_array_by_another_name(
    engine: AsyncEngine, kind: TypeEngine[Any], value: object
) -> None:
    table = Table("kinds", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", kind))
    async with AsyncSession(engine) as session:
        await (await session.connection()).run_sync(table.metadata.create_all)
        await copy_rows(session, table, [table.c.id], [(1,), (2,), (3,)])
        assert await update_many(session, table, list(table.c), [(1, value), (2, None), (3, [])]) == 3
        found = await session.execute(select(table).order_by(table.c.id))
        assert [tuple(row) for row in found] == [(1, value), (2, None), (3, [])]


ADDRESSES = ["08:00:2b:01:02:03", "08:00:2b:01:02:04"]


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        (MACADDR(), ADDRESSES[0], ADDRESSES[0]),
        (MONEY(), "1.25", "$1.25"),
        (TSVECTOR(), "b a", "'a' 'b'"),
        (DOMAIN("address", MACADDR), ADDRESSES[0], ADDRESSES[0]),
    ],
    ids=["macaddr", "money", "tsvector", "domain"],
)
@pytest.mark.usefixtures("either_way")
async def test_a_type_that_the_driver_sends_as_a_text_alone_is_upserted_and_updated(
    engine: AsyncEngine,
    kind: TypeEngine[Any],
    value: str,
    shown: str,
) -> None:
    table = Table("kinds", MetaData(), Column("id", MACADDR, primary_key=True), Column("the v", kind))
    columns, key, (one, other) = list(table.c), [table.c.id], ADDRESSES
    async with AsyncSession(engine) as session:
        await (await session.connection()).run_sync(table.metadata.create_all)
        assert await upsert(session, table, columns, [(one, value), (other, None)], key=key) == Upserted(2, 0)
        assert await upsert(session, table, columns, [(one, None), (one, value)], key=key) == Upserted(0, 1)
        assert await update_many(session, table, columns, [(other, value)]) == 1
        assert (await session.execute(text('select "the v"::text from kinds'))).all() == [(shown,), (shown,)]


async def test_a_column_may_have_a_collation(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(COLLATED))
        await copy_rows(session, COLLATED, list(COLLATED.c), [("a", "old")])
        assert await update_many(session, COLLATED, list(COLLATED.c), [("a", "new")]) == 1
        assert (await session.execute(select(COLLATED))).all() == [("a", "new")]


async def test_a_default_that_python_makes_for_each_row_is_not_made_once_for_all(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(TOKENS))
        with pytest.raises(ValueError, match="The column token of tokens has a default that Python makes"):
            await upsert(session, TOKENS, [TOKENS.c.id], [("a",), ("b",)], key=[TOKENS.c.id])
        given = [("a", "1"), ("b", "2")]
        assert (await upsert(session, TOKENS, list(TOKENS.c), given, key=[TOKENS.c.id])).inserted == 2


async def test_a_copy_without_a_column_that_sqlalchemy_would_fill_is_refused_rather_than_null(
    engine: AsyncEngine,
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(TOKENS))
        with pytest.raises(ValueError, match="The column token of tokens has a default of SQLAlchemy's"):
            await copy_rows(session, TOKENS, [TOKENS.c.id], [("a",), ("b",)])
        assert await copy_rows(session, TOKENS, list(TOKENS.c), [("a", "1"), ("b", "2")]) == 2


async def test_rows_of_a_class_that_shares_its_table_are_refused_without_what_tells_them_from_others(
    engine: AsyncEngine,
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await (await session.connection()).run_sync(Base.metadata.create_all)
        refused = pytest.raises(ValueError, match=r"Rows of Refund need a value for kind.*'refund' in each row")
        with refused:
            await copy_rows(session, Refund, [Refund.id], [(1,)])
        with refused:
            await upsert(session, Refund, [Refund.id], [(1,)], key=[Refund.id])
        assert await copy_rows(session, Refund, [Refund.id, Refund.kind], [(1, "refund")]) == 1
        assert [type(row) for row in await session.scalars(select(Payment))] == [Refund]


async def test_a_key_may_hold_an_enum_whose_members_have_no_order(engine: AsyncEngine) -> None:
    rows = [(1, Kind.SMALL, "new"), (1, Kind.BIG, "new")]
    async with AsyncSession(engine) as session, session.begin():
        await (await session.connection()).run_sync(PRICES.create)
        await copy_rows(session, PRICES, list(PRICES.c), [(sku, kind, "old") for sku, kind, _ in rows])
        assert await update_many(session, PRICES, list(PRICES.c), rows) == 2
        assert set(await session.scalars(select(PRICES.c.v))) == {"new"}


async def test_what_a_column_sets_at_each_update_is_set(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(TOUCHED))
        columns = [TOUCHED.c.id, TOUCHED.c.v]
        await copy_rows(session, TOUCHED, columns, [(1, "old")])
        assert await update_many(session, TOUCHED, columns, [(1, "new")]) == 1
        assert (await session.execute(select(TOUCHED))).all() == [(1, "new", "YES")]


@pytest.mark.parametrize("row", [(2, "b", "c"), (2,)])
async def test_rows_of_the_wrong_length_are_refused(engine: AsyncEngine, row: tuple[object, ...]) -> None:
    columns, rows = [TOUCHED.c.id, TOUCHED.c.v], [(1, "a"), row]
    for write in (copy_rows, update_many, partial(upsert, key=[TOUCHED.c.id])):
        async with AsyncSession(engine) as session:
            await session.execute(CreateTable(TOUCHED))
            with pytest.raises(ValueError, match=r"another number of values than there are columns \(2\)"):
                await write(session, TOUCHED, columns, rows)


class Lowered(TypeDecorator[str]):
    """A text that the server changes on its way, as one that it encrypts."""

    impl = Text
    cache_ok = True

    def bind_expression(self, bindparam: ColumnElement[str]) -> ColumnElement[str]:
        return func.lower(bindparam)


@pytest.mark.usefixtures("either_way")
async def test_a_type_with_sql_around_its_values_is_refused_rather_than_written_without_it(
    engine: AsyncEngine,
) -> None:
    table = Table("lowered", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", Lowered))
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(table))
        await session.execute(insert(table), [{"id": 1, "v": "ABC"}])
        for write in (copy_rows, update_many, partial(upsert, key=[table.c.id])):
            with pytest.raises(ValueError, match=r"The type of lowered\.v has a bind_expression"):
                await write(session, table, list(table.c), [(1, "DEF")])
        assert (await session.execute(select(table))).all() == [(1, "abc")]


@pytest.mark.parametrize("row", [{"id": 2, "v": "b"}, {2, "b"}, "2b"], ids=["mapping", "set", "text"])
async def test_what_is_no_row_is_refused_rather_than_taken_apart(engine: AsyncEngine, row: Any) -> None:
    """A mapping would give the names of the columns, and a text its letters."""
    columns = list(BY_TEXT.c)
    for write in (copy_rows, update_many, partial(upsert, key=[BY_TEXT.c.id])):
        for rows in ([row], [("1", "a"), row]):
            async with AsyncSession(engine) as session:
                await session.execute(CreateTable(BY_TEXT))
                with pytest.raises(TypeError, match=f"A row is a {type(row).__name__}; give its values"):
                    await write(session, BY_TEXT, columns, rows)


async def test_the_mappings_of_a_result_are_no_rows(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(BY_TEXT))
        found = (await session.execute(select(func.lower("A").label("id"), func.lower("B").label("v")))).mappings()
        rows: Any = found.all()
        with pytest.raises(TypeError, match="A row is a RowMapping"):
            await upsert(session, BY_TEXT, list(BY_TEXT.c), rows, key=[BY_TEXT.c.id])


async def test_a_column_may_have_another_key_than_its_name(engine: AsyncEngine) -> None:
    """`a` is the key of the column "b", and the other way round."""
    number: Column[Any] = Column("id", BigInteger, key="number", primary_key=True)
    a, b = Column[Any]("b", Text, key="a"), Column[Any]("a", Text, key="b")
    keyed = Table("keyed", MetaData(), number, a, b)
    columns: list[Column[Any]] = [number, a, b]
    also: dict[TargetColumn, Any] = {b: func.upper(b)}
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(keyed))
        assert await copy_rows(session, keyed, columns, [(1, "a", "b")]) == 1
        assert await upsert(session, keyed, columns, [(1, "c", "d"), (2, "e", "f")], key=[number]) == Upserted(1, 1)
        assert await upsert(session, keyed, columns, [(1, "g", "h")], key=[number], also=also) == Upserted(0, 1)
        assert await update_many(session, keyed, columns, [(2, "i", "j")]) == 1
        found = await session.execute(text("select id, b, a from keyed order by id"))
        assert [tuple(row) for row in found] == [(1, "g", "D"), (2, "i", "j")]


async def test_a_key_that_the_rows_lack_is_told(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(BY_NUMBER))
        with pytest.raises(ValueError, match=r"The key of an upsert has by_number\.id, which the rows don't"):
            await upsert(session, BY_NUMBER, [BY_NUMBER.c.v], [("a",)], key=[BY_NUMBER.c.id])


async def test_the_same_table_may_stand_in_another_metadata_and_have_a_serial_key(engine: AsyncEngine) -> None:
    serial = Table("serial", MetaData(), Column("id", BigInteger, Sequence("s", optional=True), primary_key=True))
    serial.append_column(Column("v", Text))
    other = serial.to_metadata(MetaData())
    async with AsyncSession(engine) as session:
        await session.execute(CreateTable(serial))
        assert await copy_rows(session, serial, [other.c.v], [("a",)]) == 1


async def test_a_column_of_another_table_is_refused_though_it_has_the_same_name(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(ValueError, match=r"The table touched has no column 'tokens\.id'"):
            await copy_rows(session, TOUCHED, [TOKENS.c.id, TOUCHED.c.v], [(1, "a")])


async def test_a_table_in_partitions_is_updated_and_upserted(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(PARTED))
        await session.execute(text("create table low partition of parted for values from (0) to (10)"))
        await session.execute(text("create table high partition of parted for values from (10) to (20)"))
        columns, key = list(PARTED.c), [PARTED.c.id]
        assert await upsert(session, PARTED, columns, [(5, "a"), (15, "b")], key=key) == Upserted(2, 0)
        assert await upsert(session, PARTED, columns, [(15, "c"), (16, "d")], key=key) == Upserted(1, 1)
        done = await upsert(session, PARTED, columns, [(5, "e"), (6, "f")], key=key, returning=key)
        assert sorted(tuple(row) for row in done.rows) == [(5, False), (6, True)]
        assert await update_many(session, PARTED, columns, [(16, "g"), (5, "h"), (9, "nobody")]) == 2
        found = (await session.execute(select(PARTED).order_by(PARTED.c.id))).all()
    assert found == [(5, "h"), (6, "f"), (15, "c"), (16, "g")]


async def test_an_upsert_into_a_table_called_old_counts_as_it_does_before_postgresql_18(engine: AsyncEngine) -> None:
    old = Table("old", MetaData(), Column("id", BigInteger, primary_key=True), Column("v", Text))
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(CreateTable(old))
        assert await upsert(session, old, list(old.c), [(1, "a"), (2, "b")], key=[old.c.id]) == Upserted(2, 0)
        assert await upsert(session, old, list(old.c), [(2, "c"), (3, "d")], key=[old.c.id]) == Upserted(1, 1)
