"""What a statement does to the transaction and to the session that it runs in."""

import pytest

from worker.ledger import timeout_columns
from worker.statements import MAX_KEPT_CHARACTERS, Effect, effect_of


@pytest.mark.parametrize(
    "text",
    [
        "commit",
        "COMMIT;",
        " ;; end",
        "abort work",
        "rollback",
        "rollback and chain",
        "prepare transaction 'x'",
        "/* route */ -- done\n commit",
        "/* /* nested */ still */ commit",
        "select 1; commit and chain",
        "select ';', $tag$ ; $tag$; commit",
        "select '-- it''s'; commit",
        "select 1 -- it's\n; commit",
        "set local x = 1; commit",
        "select 1" + " " * MAX_KEPT_CHARACTERS + "; commit",
    ],
)
def test_it_ends_the_transaction(text: str) -> None:
    assert effect_of(text) is Effect.ENDS


@pytest.mark.parametrize(
    "text",
    [
        "set search_path = tenant, public",
        "SET SESSION lock_timeout = 0",
        "/* why */ set role somebody",
        "listen news",
        "load 'x'",
        "prepare again as select 1",
        "create temp table t (n int)",
        "create local temporary view v as select 1",
        "declare c cursor with hold for select 1",
        "select set_config('search_path', 'x', false)",
        "select set_config('app.tenant', cast($1 as text), false)",
        "select set_config('app.tenant', lower(coalesce($1, '')), false)",
        "select set_config('app.tenant', lower($1), $2 = $3)",
        "select set_config('a', 'x', true), set_config('b', 'x', 'no')",
        "select set_config('a', $1, $2), set_config('b', '(', false)",
        "select 1 as n into temporary table left_behind",
        "with a as (select 1 as n)\nselect n into local temp left_behind from a",
        "create table pg_temp.left_behind as select 1 as n",
        'create or replace function "pg_temp".f() returns int return 1',
        "deallocate all",
        """select "set_config"('a', 'x', false)""",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared($1)",
        "set local x = 1; set y = 2",
    ],
)
def test_it_leaves_something_in_the_session(text: str) -> None:
    assert effect_of(text) is Effect.LEAVES


def test_a_parameter_says_whether_a_setting_stays() -> None:
    assert effect_of("select set_config($1::varchar, $2::varchar, $3::boolean) as x") is Effect.SETS
    assert effect_of("select set_config($1, lower($2), $3), set_config('a', 'b', true)") is Effect.SETS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "select 1;",
        "select 'commit'",
        "-- commit\nselect 1",
        "/* commit",
        "rollback to savepoint s",
        "rollback work to s",
        "release savepoint s",
        "/*+ hint */ select case when true then 1 else 0 /* none */ end",
        "/* a */ select '*/ commit'",
        "/* /* a */ commit */ select 1",
        "select '; commit'",
        'select 1 as "; commit"',
        "do $$ begin perform 1; end $$",
        "set local search_path = x",
        "set transaction read only",
        "set constraints all deferred",
        "create temp table t (n int) on commit drop",
        "select set_config('search_path', 'x', true)",
        "select set_config('app.tenant', lower(coalesce($1, '')), true), set_config('b', $2, 'on')",
        f"select {timeout_columns('$1', '$2', '$3')}",
        "select set_config('app.u', coalesce(nullif(trim(cast('x' as text)), ''), 'nobody'), true::boolean)",
        "create table pg_temp.scratch (n int) on commit drop",
        "create temp table b on commit drop as select * from pg_temp.a",
        "create table archive as select * from pg_temp.staged",
        "with a as (select 1) insert into temp select * from a",
        "select temp from pg_temp.t",
        "insert into temp select 1",
        "select pg_advisory_xact_lock(1)",
        "update t set commit = 1",
    ],
)
def test_it_does_neither(text: str) -> None:
    assert effect_of(text) is Effect.NONE


def test_many_comments_are_read_once() -> None:
    """With a pattern that may go back, thirty of them took minutes."""
    assert effect_of("/* a */ select " + "/* c */ " * 300 + "1 end") is Effect.NONE
