"""`worker.enqueue`: from any language, in the caller's transaction."""

import asyncio
import json
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.outbox.conftest import Psql
from tests.outbox.hands import Hands, Play
from worker.dev import EmbeddedServerError
from worker.outbox import coalescing_id
from worker.wire import Message, decode


async def test_psql_alone_enqueues_in_a_transaction_that_commits(hands: Hands, psql: Psql) -> None:
    job_id = await asyncio.to_thread(psql, """begin; select worker.enqueue('test.play', '{"text": "é"}'); commit""")
    await hands.work()
    assert await hands.applied() == ["é"]
    [run] = await hands.runs()
    assert (run.id, run.status, UUID(job_id).version) == (job_id, "completed", 7)


async def test_psql_alone_enqueues_nothing_in_a_transaction_that_rolls_back(hands: Hands, psql: Psql) -> None:
    await asyncio.to_thread(psql, """begin; select worker.enqueue('test.play', '{}'); rollback""")
    assert await hands.work() == []
    assert await hands.rows() == []


@pytest.mark.parametrize(
    ("name", "key"),
    [("orders.pay", "1"), ("a", "ключ"), ("a", "日本語 😀"), ("x" * 200, "e\u0301"), ("a", "\\x00"), ("a", " \t\n'\"")],
)
async def test_the_ids_of_sql_and_python_agree_for_one_key(hands: Hands, name: str, key: str) -> None:
    [row] = await hands.sql("select worker.enqueue(:name, '{}', key => :key)", name=name, key=key)
    assert row[0] == coalescing_id(name, key)
    assert UUID(row[0]).version == 8


async def test_a_key_stays_apart_from_the_name_it_is_hashed_with(hands: Hands) -> None:
    statement = "select worker.enqueue('ab', '{}', key => 'c') <> worker.enqueue('a', '{}', key => 'bc')"
    assert (await hands.sql(statement))[0][0]
    assert coalescing_id("ab", "c") != coalescing_id("a", "bc")


async def test_jobs_of_sql_and_python_coalesce_with_each_other(hands: Hands) -> None:
    await hands.enqueue(Play(text="Python"), key="k")
    await hands.sql("""select worker.enqueue('test.play', '{"text": "SQL"}', key => 'k')""")
    await hands.work()
    assert await hands.applied() == ["SQL"]


async def test_every_argument_arrives(hands: Hands) -> None:
    await hands.sql(
        """select worker.enqueue('test.play', '{"text": "a", "n": 1.5}', job_id => 'chosen', queue => 'slow',
        delay => interval '1 hour', headers => '{"baggage": "b", "ignored": 1}')"""
    )
    [row] = await hands.rows("*, due_at - now() as delay")
    assert (row.id, row.enqueued_ms, row.name, row.queue, row.coalesces) == ("chosen", 0, "test.play", "slow", True)
    assert 3590 < row.delay.total_seconds() <= 3600
    message = decode(row.message)
    assert message == Message("test.play", b'{"n":1.5,"text":"a"}', 0, from_outbox=True, headers={"baggage": "b"})


async def test_the_message_carries_the_row_s_enqueue_time(hands: Hands) -> None:
    await hands.sql("select worker.enqueue('test.play', '{}', at => '2030-01-01 12:00+00')")
    [row] = await hands.rows("*, extract(epoch from due_at) as due")
    message = decode(row.message)
    assert isinstance(message, Message)
    assert message.enqueued_ms == row.enqueued_ms == UUID(row.id).int >> 80
    assert row.due == 1893499200


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("null, '{}'", "the job name NULL"),
        ("'no name', '{}'", "the job name 'no name'"),
        (r"E'a\n', '{}'", "the job name"),
        ("'a', null", "a payload that is null"),
        ("'a', '[]'", "a payload that is array"),
        ("'a', jsonb_build_object('x', repeat('x', 1048576))", "a payload of 1048585 bytes"),
        ("'a', '{}', key => 'k', job_id => 'j'", "both key and job_id"),
        ("'a', '{}', delay => '1 s', at => now()", "both delay and at"),
        ("'a', '{}', key => ''", "a key of 0 bytes"),
        ("'a', '{}', key => repeat('é', 501)", "a key of 1002 bytes"),
        ("'a', '{}', job_id => 'with space'", "the job_id 'with space'"),
        (r"'a', '{}', job_id => E'x\n'", "the job_id"),
        ("'a', '{}', job_id => 'é'", "the job_id 'é'"),
        ("'a', '{}', job_id => ''", "the job_id ''"),
        ("'a', '{}', queue => 'with space'", "the queue 'with space'"),
        ("'a', '{}', headers => '[]'", "headers that are array"),
        ("'a', '{}', at => 'infinity'", "a due time that is infinite"),
        ("'a', '{}', at => '-infinity'", "a due time that is infinite"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_sentence(hands: Hands, arguments: str, refusal: str) -> None:
    with pytest.raises(DBAPIError, match=refusal):
        await hands.sql(f"select worker.enqueue({arguments})")
    assert await hands.rows() == []


async def test_a_row_that_would_never_be_due_is_refused_by_the_table_too(hands: Hands) -> None:
    """One such row, and no statement of the relay would get past it."""
    with pytest.raises(DBAPIError, match="outbox_due_at_check"):
        await hands.sql(
            "insert into worker.outbox (id, enqueued_ms, name, queue, message, due_at)"
            " values ('x', 1, 'x', 'x', '', 'infinity')"
        )


async def test_a_caller_s_settings_change_neither_id_nor_message(hands: Hands, psql: Psql) -> None:
    """What a session may set: string syntax, output formats, time zone."""
    hostile = (
        "set standard_conforming_strings = off; set escape_string_warning = off; set bytea_output = 'escape'; "
        "set datestyle = 'German'; set timezone = 'Asia/Tokyo'; set extra_float_digits = -15; "
    )
    enqueue = "select worker.enqueue('test.play', '{\"text\": \"x\", \"n\": 0.1}', key => 'k')"
    assert await asyncio.to_thread(psql, hostile + enqueue) == coalescing_id("test.play", "k")
    [row] = await hands.rows()
    message = decode(row.message)
    assert isinstance(message, Message)
    assert json.loads(message.payload) == {"text": "x", "n": 0.1}


async def test_the_role_worker_producer_may_enqueue(producer: AsyncConnection, hands: Hands) -> None:
    await producer.execute(text("""select worker.enqueue('test.play', '{"text": "theirs"}')"""))
    await producer.commit()
    await hands.work()
    assert await hands.applied() == ["theirs"]


async def test_usage_and_execute_are_all_that_the_role_was_granted(hands: Hands) -> None:
    granted = """
    select 'schema ' || privilege_type from pg_namespace, aclexplode(nspacl) as acl
        where nspname = 'worker' and grantee = 'worker_producer'::regrole
    union all select proname || ' ' || privilege_type from pg_proc, aclexplode(proacl) as acl
        where pronamespace = 'worker'::regnamespace and grantee in ('worker_producer'::regrole, 0)
    union all select relname || ' ' || privilege_type from pg_class, aclexplode(relacl) as acl
        where relnamespace = 'worker'::regnamespace and grantee in ('worker_producer'::regrole, 0)
    union all select 'public may run ' || proname from pg_proc
        where pronamespace = 'worker'::regnamespace and proacl is null
    """
    assert {row[0] for row in await hands.sql(granted)} == {"schema USAGE", "enqueue EXECUTE"}


async def test_the_function_s_search_path_can_t_be_hijacked(producer: AsyncConnection, hands: Hands) -> None:
    """Whatever a caller puts in front of it, the function finds the real parts, with its owner's rights."""
    trap = "language plpgsql as $$ begin raise 'hijacked'; end $$"
    for statement in (
        "create temp table outbox (like pg_class)",
        f"create function pg_temp.sha256(bytea) returns bytea {trap}",
        f"create function pg_temp.gen_random_uuid() returns uuid {trap}",
        f"create function pg_temp.pg_notify(text, text) returns void {trap}",
        f"create function pg_temp.mine(text, text) returns bool {trap}",
        "create operator pg_temp.!~ (leftarg = text, rightarg = text, function = pg_temp.mine)",
        "create domain pg_temp.jsonb as text check (value = 'hijacked')",
        "set search_path = pg_temp, pg_catalog",
    ):
        await producer.exec_driver_sql(statement)
    await producer.execute(text("select worker.enqueue('test.play', '{}', key => 'k')"))
    await producer.execute(text("select worker.enqueue('test.play', '{}')"))
    await producer.commit()
    assert len(await hands.rows()) == 2


def test_psql_s_error_is_a_sentence_too(psql: Psql) -> None:
    with pytest.raises(EmbeddedServerError, match="use at most 200 letters"):
        psql("select worker.enqueue('no name', '{}')")
