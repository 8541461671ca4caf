"""Many rows out: through a cursor to a handler, or as PostgreSQL writes them."""

import asyncio
import csv
import io
import json
import math
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import ARRAY, Integer, Text, bindparam, func, literal, literal_column, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Note, Taken, effect
from worker.bulk import copy_csv, copy_ndjson, stream
from worker.bulk.copying import driver_in_transaction
from worker.errors import Permanent
from worker.handler import Handler
from worker.outcome import Completed, Retrying

NASTY = ['"', "\\", "\\.", "\\N", "a,b", "a\r\nb", "\t\x01\x02\x7f", "", " ", "é💶", "%s :x $1", "null"]
N = func.generate_series(1, 5_000).table_valued("n", name="numbers").render_derived().columns.n


@pytest.fixture
async def session(bench: Bench) -> AsyncIterator[AsyncSession]:
    """A plain one, on the runtime's engine."""
    async with AsyncSession(bench.engine) as session:
        yield session


async def names(bench: Bench) -> list[str]:
    return [name for (name,) in await bench.all("select name from taken order by name")]


async def test_columns_and_entities_are_streamed(session: AsyncSession) -> None:
    session.add_all(Taken(name=name) for name in "abcde")
    batches = [rows async for rows in stream(session, select(Taken.name, literal(1)).order_by(Taken.name), size=2)]
    assert [[row.name for row in rows] for rows in batches] == [["a", "b"], ["c", "d"], ["e"]]  # what is pending counts
    entities = [rows async for rows in stream(session, select(Taken).order_by(Taken.name), size=2)]
    assert [[taken.name for (taken,) in rows] for rows in entities] == [["a", "b"], ["c", "d"], ["e"]]
    assert [rows async for rows in stream(session, select(Taken.name).where(Taken.name == ""))] == []


@pytest.mark.parametrize("size", [1, 49, 50, 51, 1_000, 6_000])
async def test_each_row_comes_once_and_whole_at_any_size(session: AsyncSession, size: int) -> None:
    about = func.jsonb_build_object("n", N, type_=JSONB)  # which SQLAlchemy reads, and not the driver
    batches = [rows async for rows in stream(session, select(N, about.label("about")), size=size)]
    assert [(row.n, row.about) for rows in batches for row in rows] == [(n, {"n": n}) for n in range(1, 5_001)]
    assert {len(rows) for rows in batches[:-1]} <= {size}


async def test_a_stream_sees_one_snapshot_whichever_batch(session: AsyncSession, bench: Bench) -> None:
    await bench.all("insert into taken values ('a'), ('b'), ('c'), ('d'), ('e')")
    seen: list[str] = []
    async for rows in stream(session, select(Taken.name).order_by(Taken.name), size=2):
        await bench.all("delete from taken where name > :name", name=rows[0].name)
        await bench.all("insert into taken values (:name)", name=f"z{rows[0].name}")
        seen += [row.name for row in rows]
    assert seen == list("abcde")
    assert await names(bench) == ["a", "ze"]


async def test_other_statements_may_come_between_two_batches_and_a_stream_may_be_left(session: AsyncSession) -> None:
    seen: list[int] = []
    async for rows in stream(session, select(N), size=3):
        seen.append((await session.execute(select(literal(rows[0].n)))).scalar_one())
        if rows[0].n == 7:
            break
    assert seen == [1, 4, 7]
    assert (await session.execute(select(func.count(N)))).scalar_one() == 5_000


@pytest.mark.parametrize("value", NASTY)
async def test_values_are_literals_and_come_out_as_they_went_in(session: AsyncSession, value: str) -> None:
    written = bytearray()
    row = select(literal(value).label("value"), literal(None).label("nothing"), N).where(N < 3)
    assert await copy_csv(session, row, written.extend) == 2
    header, first, second = csv.reader(io.StringIO(written.decode(), newline=""))
    assert (header, first, second) == (["value", "nothing", "n"], [value, "", "1"], [value, "", "2"])

    written.clear()
    assert await copy_ndjson(session, row, written.extend) == 2
    assert [json.loads(line) for line in written.decode().split("\n")[:-1]] == [
        {"value": value, "nothing": None, "n": n} for n in (1, 2)
    ]


async def test_the_line_breaks_that_a_json_column_keeps_break_no_line(session: AsyncSession) -> None:
    written = bytearray()
    kept = select(literal_column("""json '{"x":\n\t1}'""", Text).label("body"))
    assert await copy_ndjson(session, kept, written.extend) == 1
    assert (written.count(b"\n"), json.loads(written)) == (1, {"body": {"x": 1}})


async def test_values_of_other_types_are_literals_too(session: AsyncSession) -> None:
    written = bytearray()
    at = datetime(2021, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    row = select(
        literal(at).label("at"),
        literal(Decimal("1.50")).label("amount"),
        literal([1, 2], ARRAY(Integer)).label("list"),
        N.in_([1, 2]).label("there"),
    ).where(N.in_([bindparam("n", 2)]))
    assert await copy_ndjson(session, row, written.extend) == 1
    value = json.loads(written)
    assert datetime.fromisoformat(value.pop("at")) == at
    assert value == {"amount": 1.5, "list": [1, 2], "there": True}


async def test_a_value_that_is_no_literal_is_a_sentence(session: AsyncSession) -> None:
    def write(lines: bytes) -> None:
        raise AssertionError(lines)

    with pytest.raises(Permanent, match="COPY takes no parameters") as caught:
        await copy_csv(session, select(literal({"card": "4111"}, JSONB)), write)
    assert "4111" not in str(caught.value)


@pytest.mark.parametrize("bytes_a_row", [1, 1_000, 300_000])
async def test_a_piece_holds_whole_lines(session: AsyncSession, bytes_a_row: int) -> None:
    """The messages of one read from the socket end anywhere; the pieces must not."""
    pieces: list[bytes] = []
    numbers = func.generate_series(1, 3_000_000 // (bytes_a_row + 10)).column_valued("n")
    rows = select(func.repeat("x", bytes_a_row + numbers % 7))
    count = await copy_csv(session, rows, pieces.append, header=False, piece_bytes=1)
    assert len(pieces) > 1
    assert all(piece.endswith(b"x\n") for piece in pieces)
    assert b"".join(pieces).count(b"\n") == count


async def test_a_write_that_fails_fails_the_copy_and_the_connection_lives(bench: Bench) -> None:
    def write(lines: bytes) -> None:
        raise OSError(28, "No space left on device")

    async def exporting(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await copy_csv(session, select(N), write)

    outcome = await bench.run(Handler(Note, exporting), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert "No space left on device" in outcome.error
    assert await bench.effects() == []


async def test_the_guard_takes_neither_for_a_misuse_and_both_are_the_transactions(bench: Bench) -> None:
    written = bytearray()

    async def exporting(job: Note, session: AsyncSession) -> list[int]:
        session.add(Taken(name=f"commit; rollback {job.text}"))
        streamed = [row.n async for rows in stream(session, select(N).where(N < 4)) for row in rows]
        rows = await copy_csv(session, select(Taken.name), written.extend, header=False)
        return [*streamed, rows]

    for once in (True, False):
        written.clear()
        outcome = await bench.run(Handler(Note, exporting, once=once), await bench.enqueued(Note(text=str(once))))
        assert isinstance(outcome, Completed)
        assert f"commit; rollback {once}\n".encode() in written
    assert await names(bench) == ["commit; rollback False", "commit; rollback True"]


async def test_a_second_task_is_told(bench: Bench) -> None:
    async def copies(session: AsyncSession) -> None:
        await copy_csv(session, select(N), bytearray().extend)

    async def streams(session: AsyncSession) -> None:
        async for _ in stream(session, select(N)):
            pass

    for misuse in (copies, streams):

        async def gathering(job: Note, session: AsyncSession, misuse: Any = misuse) -> None:
            await asyncio.gather(misuse(session))

        outcome = await bench.run(Handler(Note, gathering), await bench.enqueued(Note()))
        assert isinstance(outcome, Retrying)
        assert "used its session from a second task" in outcome.error


async def test_what_goes_straight_to_the_driver_is_rolled_back_with_the_session(bench: Bench) -> None:
    """asyncpg's COPY on a connection whose transaction SQLAlchemy hasn't begun yet would commit by itself."""
    async with AsyncSession(bench.engine) as session:
        driver = await driver_in_transaction(session)
        await driver.copy_records_to_table("taken", records=[("left behind",)])
        await session.rollback()
    assert await names(bench) == []


@pytest.mark.parametrize(
    "value",
    [
        rb"\x41", bytearray(rb"\x41"), timedelta(days=1), math.nan, Decimal("NaN"),
        date.max, date.min, datetime.max, datetime.min,  # noqa: DTZ901 - a zone makes others of them
    ],
    ids=repr,
)  # fmt: skip
async def test_a_value_whose_literal_is_another_one_is_refused(session: AsyncSession, value: object) -> None:
    listed = literal([[value]], ARRAY(literal(value).type))
    for statement in (select(literal(value)), select(N).where(literal_column("1").in_([value])), select(listed)):
        with pytest.raises(Permanent, match="is another value than the parameter; cast a text to its type"):
            await copy_csv(session, statement, bytearray().extend)
