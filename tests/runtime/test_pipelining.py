"""BEGIN and the first statement in one round trip: as if they had been sent one after another."""

import asyncio
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from tests.runtime.bench import Bench
from worker.connection import begin_with, commit, connected, driver_of
from worker.guard import Guard
from worker.pipelining import going_ahead

LEVEL = "select current_setting('transaction_isolation'), $1::int / $2::int"


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_the_transaction_has_its_isolation_level_each_time_and_leaves_none_behind(
    bench: Bench, level: Any
) -> None:
    for _ in range(3):
        async with connected(bench.engine, Guard()) as connection:
            row = await begin_with(connection, level, LEVEL, 4, 2)
            assert tuple(row) == (level.lower(), 2)
            assert driver_of(connection).is_in_transaction()
            assert (await connection.execute(text("show transaction_isolation"))).scalar_one() == level.lower()
            await commit(connection)
    async with bench.engine.connect() as connection:
        assert (await connection.execute(text("show transaction_isolation"))).scalar_one() == "read committed"


async def test_what_the_statement_raises_is_raised_in_a_transaction_that_is_rolled_back(bench: Bench) -> None:
    for second in (1, 0, 0, 1, 1):
        async with connected(bench.engine, Guard()) as connection:
            if second:
                await begin_with(connection, "READ COMMITTED", LEVEL, 1, second)
            else:
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await begin_with(connection, "READ COMMITTED", LEVEL, 1, second)
            driver = driver_of(connection)
            assert driver.is_in_transaction()
        assert not driver.is_in_transaction()
        assert not driver.is_closed()


async def test_what_the_driver_raises_before_anything_is_sent_leaves_no_transaction(bench: Bench) -> None:
    for second in (1, "no number", 1, 1):
        async with connected(bench.engine, Guard()) as connection:
            if second == 1:
                assert tuple(await begin_with(connection, "READ COMMITTED", LEVEL, 4, second))[1] == 4
                await commit(connection)
            else:
                with pytest.raises(asyncpg.DataError):
                    await begin_with(connection, "READ COMMITTED", LEVEL, 4, second)


async def test_a_begin_that_nothing_followed_holds_nothing_else_back(bench: Bench) -> None:
    async with connected(bench.engine, Guard()) as connection:
        await begin_with(connection, "READ COMMITTED", LEVEL, 1, 1)
        await commit(connection)
        driver: Any = driver_of(connection)
        driver.hold_back_begin()
        await driver.execute("create temp table held (n int)")
        assert await driver.fetchval("select count(*) from held") == 0


async def test_what_begin_raises_is_raised_too(bench: Bench) -> None:
    async with connected(bench.engine, Guard()) as connection:
        driver: Any = driver_of(connection)
        statement = await driver.prepare(LEVEL)
        await statement.fetchrow(1, 1)
        driver._transport.write(going_ahead("BEGIN ISOLATION LEVEL AS YOU LIKE IT"))
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await statement.fetchrow(1, 1)
        assert await driver.fetchval("select 1") == 1


async def test_one_that_is_cancelled_leaves_no_transaction(bench: Bench) -> None:
    async def hanging(*, hangs: bool) -> None:
        async with connected(bench.engine, Guard()) as connection:
            drivers.append(driver_of(connection))
            await begin_with(connection, "READ COMMITTED", "select pg_sleep($1)", 30.0 if hangs else 0.0)
            await commit(connection)

    drivers: list[Any] = []
    await hanging(hangs=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hanging(hangs=True), 0.1)
    await hanging(hangs=False)
    assert len(set(map(id, drivers))) == 1
    assert not drivers[0].is_in_transaction()
