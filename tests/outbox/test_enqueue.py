"""`enqueue(session, job)`: with the caller's transaction or not at all, and nobody waits for it."""

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tests.outbox.conftest import Psql
from tests.outbox.hands import Hands, Play
from worker.database import create_engine
from worker.job import Job
from worker.outbox import enqueue, enqueue_many
from worker.wire import Message, decode


class Slow(Job, name="test.slow", queue="slow"):
    """Has a queue of its own."""


class Anything(Job, name="test.anything"):
    value: JsonValue


@pytest.fixture
async def statements(engine: AsyncEngine) -> AsyncIterator[list[str]]:
    """What the server was asked."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_job_leaves_with_the_caller_s_transaction(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session:
        job_id = enqueue(session, Play(text="é"))
        await session.flush()
        assert await hands.relay.drain() == 0
        await session.commit()
    assert await hands.relay.drain() == 1
    [row] = await hands.rows()
    message = decode(row.message)
    assert isinstance(message, Message)
    assert (row.id, row.name, row.queue, row.enqueued_ms) == (job_id, "test.play", "arq:queue", message.enqueued_ms)
    assert Play.from_payload(message.payload) == Play(text="é")


async def test_a_job_does_not_leave_with_a_transaction_that_rolls_back(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session:
        enqueue(session, Play())
        await session.flush()
        await session.rollback()
    assert await hands.relay.drain() == 0
    assert await hands.rows() == []


async def test_a_plain_session_enqueues_too(engine: AsyncEngine, hands: Hands) -> None:
    def in_synchronous_code(session: Session) -> None:
        enqueue(session, Play())

    async with AsyncSession(engine) as session, session.begin():
        await session.run_sync(in_synchronous_code)
    assert len(await hands.rows()) == 1


async def test_enqueue_asks_nothing_of_the_server_until_the_session_does(
    engine: AsyncEngine, statements: list[str]
) -> None:
    async with AsyncSession(engine) as session:
        enqueue(session, Play())
        enqueue(session, Play(), key="k", delay=timedelta(seconds=1))
        assert statements == []
        session.expunge_all()


async def test_enqueue_many_returns_the_ids_in_order_and_leaves_in_few_statements(
    engine: AsyncEngine, hands: Hands, statements: list[str]
) -> None:
    async with AsyncSession(engine) as session, session.begin():
        ids = enqueue_many(session, (Play(text=str(number)) for number in range(1000)))
    inserts = [statement for statement in statements if statement.startswith("INSERT")]
    assert len(inserts) < 10
    assert [row.id for row in await hands.rows("id")] == ids


async def test_an_id_is_a_uuid_of_version_7_and_its_enqueue_time_is_now(hands: Hands) -> None:
    before = time.time_ns() // 1_000_000
    [job_id] = await hands.enqueue(Play())
    after = time.time_ns() // 1_000_000
    [row] = await hands.rows()
    assert UUID(job_id).version == 7
    assert before <= row.enqueued_ms <= after


async def test_the_outbox_s_key_is_a_sequence_so_no_caller_ever_waits_for_another(engine: AsyncEngine) -> None:
    """Two open transactions with one key and one job_id; were one to wait, its lock timeout would end it."""
    async with AsyncSession(engine) as first, AsyncSession(engine) as second:
        for session in (first, second):
            enqueue(session, Play(), key="k")
            enqueue(session, Play(), job_id="j")
            await session.flush()
        await second.commit()
        await first.commit()


async def test_a_delay_counts_from_the_transaction_s_start_by_postgresql_s_clock(hands: Hands) -> None:
    async with AsyncSession(hands.engine) as session, session.begin():
        now: datetime = (await session.execute(text("select now()"))).scalar_one()
        enqueue(session, Play(), delay=timedelta(hours=3))
    [row] = await hands.rows()
    assert row.due_at == now + timedelta(hours=3)


async def test_a_day_of_a_delay_has_24_hours_in_every_zone(hands: Hands) -> None:
    """Of the four one at least is across a change of the clocks."""
    async with AsyncSession(hands.engine) as session, session.begin():
        await session.execute(text("set local timezone = 'Europe/Berlin'"))
        now: datetime = (await session.execute(text("select now()"))).scalar_one()
        delays = [timedelta(days=days) for days in (90, 180, 270, 360)]
        for delay in delays:
            enqueue(session, Play(), delay=delay)
    assert [row.due_at for row in await hands.rows()] == [now + delay for delay in delays]


async def test_a_job_can_be_due_at_a_time_in_any_zone(hands: Hands) -> None:
    at = datetime(2030, 1, 1, 12, tzinfo=UTC)
    await hands.enqueue(Play(), at=at)
    [row] = await hands.rows()
    assert row.due_at == at


async def test_a_time_long_past_is_due_now(hands: Hands) -> None:
    await hands.enqueue(Play(), at=datetime.min.replace(tzinfo=UTC))
    [row] = await hands.rows()
    assert row.due_at < datetime.now(UTC)


async def test_a_job_goes_to_its_class_s_queue_unless_the_caller_names_another(hands: Hands) -> None:
    await hands.enqueue(Play(), Slow())
    await hands.enqueue(Slow(), queue="other")
    assert [row.queue for row in await hands.rows()] == ["arq:queue", "slow", "other"]


async def test_rows_hold_the_message_as_bytes_since_jsonb_refuses_nul(hands: Hands) -> None:
    await hands.enqueue(Play(text="a\0b"))
    [row] = await hands.rows()
    assert rb"a\u0000b" in row.message
    await hands.work()
    [run] = await hands.runs()
    assert run.status == "dead"  # the test's own table can't hold it either
    assert run.message == row.message


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"key": "k", "job_id": "j"}, "both key and job_id"),
        ({"key": 17}, "enqueue got key=17; give a text."),
        ({"job_id": 17}, "enqueue got job_id=17; give a text."),
        ({"queue": 17}, "enqueue got queue=17; give a text."),
        ({"at": "2030-01-31"}, "enqueue got at='2030-01-31'; give an aware datetime."),
        ({"at": date(2030, 1, 31)}, "enqueue got at=datetime.date(2030, 1, 31); give an aware datetime."),
        ({"delay": timedelta(0), "at": datetime.now(UTC)}, "both delay and at"),
        ({"delay": 60}, "delay=60; give a timedelta"),
        ({"at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - what is refused
        ({"job_id": ""}, "the job_id ''"),
        ({"job_id": "with space"}, "the job_id 'with space'"),
        ({"job_id": "é"}, "the job_id 'é'"),
        ({"job_id": "x" * 201}, "the job_id"),
        ({"job_id": "x\n"}, "the job_id"),
        ({"key": ""}, "a key of 0 bytes"),
        ({"key": "é" * 501}, "a key of 1002 bytes"),
        ({"key": "a\0b"}, "a key of 3 bytes"),
        ({"key": "\ud800"}, "a key of 3 bytes"),
        ({"queue": "with space"}, "The queue is called 'with space'"),
        ({"headers": {"baggage": "x" * 70_000}}, "send fewer headers"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(options: dict[str, Any], refusal: str) -> None:
    session = Session()
    with pytest.raises(ValueError, match=re.escape(refusal)):
        enqueue(session, Play(text="x" * (1024 * 1024 - 100)), **options)
    assert not session.new


@pytest.mark.parametrize(
    ("given", "told"), [(Play, "the class Play"), ({"text": "hunter2"}, "a dict"), ("test.play", "a str")]
)
def test_what_is_no_job_is_refused_and_not_quoted(given: Any, told: str) -> None:
    session = Session()
    refusal = f"^enqueue got {told} for a job; give an instance of a class of Job, with its fields.$"
    with pytest.raises(ValueError, match=refusal):
        enqueue(session, given)
    with pytest.raises(ValueError, match=refusal):
        enqueue_many(session, [given])
    assert not session.new


def test_a_payload_over_1_mib_is_refused() -> None:
    with pytest.raises(ValueError, match="the limit is 1,048,576"):
        enqueue(Session(), Play(text="x" * 1024 * 1024))


async def test_the_largest_payload_reaches_its_handler(hands: Hands) -> None:
    text_of_most = "x" * (1024 * 1024 - len(Play().to_payload()))
    await hands.enqueue(Play(text=text_of_most))
    await hands.enqueue(Play(text=text_of_most), key="k")
    await hands.work()
    assert await hands.applied() == [text_of_most] * 2


def test_half_a_surrogate_pair_is_refused_where_it_is_enqueued() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        enqueue(Session(), Anything(value="\ud800"))


async def test_a_python_producer_needs_insert_on_the_outbox_and_the_sight_of_its_key(
    hands: Hands, psql: Psql, database_url: str
) -> None:
    psql("drop role if exists shop", "create role shop login", "grant usage on schema worker to shop")
    psql("grant insert, select (seq) on worker.outbox to shop")
    shop = create_engine(database_url.replace("postgres@", "shop@"), pool_size=1)
    try:
        async with AsyncSession(shop) as session, session.begin():
            enqueue_many(session, [Play(text="1"), Play(text="2")])
            enqueue(session, Play(text="3"), key="k", delay=timedelta(0))
            enqueue(session, Play(text="4"), job_id="j")
        async with AsyncSession(shop) as session:
            with pytest.raises(DBAPIError, match="permission denied"):
                await session.execute(text("select message from worker.outbox"))
    finally:
        await shop.dispose()
        psql("drop owned by shop", "drop role shop")
    await hands.work()
    assert sorted(await hands.applied()) == ["1", "2", "3", "4"]
