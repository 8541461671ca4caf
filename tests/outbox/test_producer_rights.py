"""The role worker_producer may call `worker.enqueue`, and do nothing else: each right is tried, on all there is."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.outbox.hands import Hands

# pg_temp is the session's own; what lies in the catalogs everybody may read.
OURS = "nspname not in ('pg_catalog', 'information_schema') and nspname not like 'pg\\_%'"
TABLES = f"""
    select c.oid::regclass::text from pg_class as c join pg_namespace as n on n.oid = relnamespace
    where {OURS} and relkind in ('r', 'p', 'v', 'm') order by 1"""
SEQUENCES = f"""
    select c.oid::regclass::text from pg_class as c join pg_namespace as n on n.oid = relnamespace
    where {OURS} and relkind = 'S' order by 1"""
FUNCTIONS = """
    select format('%s(%s)', p.oid::regproc, pg_get_function_arguments(p.oid)) from pg_proc as p
    where pronamespace = 'worker'::regnamespace and has_function_privilege('worker_producer', p.oid, 'execute')"""
ROLE = """
    select rolsuper or rolcreaterole or rolcreatedb or rolcanlogin or rolreplication or rolbypassrls
        or exists (select from pg_auth_members where member = pg_roles.oid)
    from pg_roles where rolname = 'worker_producer'"""


async def names(hands: Hands, statement: str) -> list[str]:
    return [row[0] for row in await hands.sql(statement)]


async def refused(producer: AsyncConnection, statements: Sequence[str]) -> None:
    for statement in statements:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            await producer.execute(text(statement))
        await producer.rollback()


async def test_every_table_of_every_schema_is_closed_to_it(producer: AsyncConnection, hands: Hands) -> None:
    tables = await names(hands, TABLES)
    assert {"worker.outbox", "worker.run", "users", "orders"} <= set(tables)
    for table in tables:
        await refused(
            producer,
            [
                f"select from {table}",
                f"insert into {table} default values",
                f"update {table} set {await first_column(hands, table)} = default",
                f"delete from {table}",
                f"truncate {table}",
                f"lock {table} in access share mode",
            ],
        )


async def first_column(hands: Hands, table: str) -> str:
    found = await hands.sql(
        f"select quote_ident(attname) from pg_attribute where attrelid = '{table}'::regclass and attnum = 1"
    )
    return str(found[0][0])


async def test_so_is_every_sequence(producer: AsyncConnection, hands: Hands) -> None:
    for sequence in await names(hands, SEQUENCES):
        await refused(producer, [f"select nextval('{sequence}')", f"select last_value from {sequence}"])


async def test_of_the_schemas_functions_it_may_run_one(hands: Hands) -> None:
    [function] = await names(hands, FUNCTIONS)
    assert function.startswith("worker.enqueue(")


async def test_nothing_can_be_made_by_it(producer: AsyncConnection, hands: Hands) -> None:
    database = (await names(hands, "select quote_ident(current_database())"))[0]
    made = [f"create {what}" for what in ("schema mine", "role mine", "publication mine")]
    for schema in ("worker", "public"):
        made += [
            f"create table {schema}.mine (x int)",
            f"create view {schema}.mine as select 1",
            f"create sequence {schema}.mine",
            f"create type {schema}.mine as (x int)",
            f"create function {schema}.mine() returns int language sql as 'select 1'",
        ]
    await refused(
        producer,
        [
            *made,
            "drop function worker.enqueue",
            "alter table worker.outbox disable trigger notify",
            "alter function worker.enqueue owner to current_user",
            "copy worker.outbox to stdout",
            "copy (select 1) to program 'true'",
            "set role postgres",
            f"alter database {database} set work_mem = '1GB'",
        ],
    )


async def test_temporary_tables_are_everybodys_until_they_are_revoked(producer: AsyncConnection, hands: Hands) -> None:
    """PostgreSQL gives them to PUBLIC in each database. They are the database's to revoke, not a migration's."""
    database = (await names(hands, "select quote_ident(current_database())"))[0]
    await hands.sql(f"revoke temporary on database {database} from public")
    await refused(producer, ["create temp table mine (x int)"])
    await hands.sql(f"grant temporary on database {database} to public")


async def test_the_role_is_no_more_than_a_name(hands: Hands) -> None:
    assert not (await hands.sql(ROLE))[0][0]
