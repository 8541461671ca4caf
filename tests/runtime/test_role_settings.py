"""What a role or a database has been set to for all that connect as it: an attempt's own limits stand beside it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Grip, Note, effect
from tests.runtime.test_zombies import LOCK_IT, noting
from tests.support.waiting import wait_until
from worker.database import create_engine
from worker.handler import Handler
from worker.outcome import Completed, Released


async def let(own: Bench, setting: str) -> None:
    """As `alter role … set …`: for connections from now on."""
    ((name,),) = await own.all("select current_database()")
    await own.all(f"alter database {name} set {setting}")
    await own.engine.dispose()


@pytest.fixture
async def second(own: Bench, database_url: str) -> AsyncIterator[Bench]:
    del own  # it makes the tables
    second = Bench(create_engine(database_url, pool_size=5))
    yield second
    await second.close()


async def test_a_zombie_is_ended_though_the_statement_timeout_is_shorter_than_our_wait(
    own: Bench, second: Bench
) -> None:
    await let(own, "statement_timeout = '1s'")
    delivery = await own.enqueued(Note())

    async def is_old() -> bool:
        since = "clock_timestamp() - interval '2.1 s'"
        return bool(await own.all(f"select pid from pg_stat_activity where xact_start < {since}"))

    async with second.engine.connect() as zombie:
        await zombie.execute(LOCK_IT)
        await wait_until(is_old)
        outcome = await own.run(Handler(Note, noting), delivery)
        await zombie.invalidate()
    assert (outcome, own.told.faults) == (Completed("done"), [])


async def test_a_run_that_another_worker_holds_for_longer_than_it_counts_nothing(own: Bench, second: Bench) -> None:
    await let(own, "statement_timeout = '300ms'")
    delivery = await own.enqueued(Note(), hold=Grip(ours=False))
    async with second.engine.connect() as holder:
        await holder.execute(LOCK_IT)
        assert isinstance(await own.run(Handler(Note, noting), delivery), Released)
        await holder.rollback()
    assert (await own.runs(), own.told.faults) == ([], [])


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
async def test_a_handler_that_waits_for_something_else_has_its_own_timeout(own: Bench, setting: str) -> None:
    calls: list[str] = []

    async def paying(_job: Note, session: AsyncSession) -> str:
        await effect(session, "mine")
        calls.append("a payment")
        await asyncio.sleep(0.6)  # as the bank's answer takes
        return "done"

    await let(own, f"{setting} = '200ms'")
    delivery = await own.enqueued(Note())
    outcome = await own.run(Handler(Note, paying, timeout=timedelta(seconds=10)), delivery)
    assert (outcome, calls) == (Completed("done"), ["a payment"])


@pytest.mark.parametrize("once", [True, False])
async def test_a_server_that_takes_no_writes_is_away(own: Bench, *, once: bool) -> None:
    """As a managed server whose disk is full, or an administrator before a move."""

    async def mailing(_job: Note, _session: AsyncSession) -> str:
        return "done"

    delivery = await own.enqueued(Note())
    await let(own, "default_transaction_read_only = on")
    handler = Handler(Note, mailing, once=once)
    assert isinstance(await own.run(handler, delivery), Released)
    assert (own.told.faults, own.availability.is_up()) == ([], False)  # so nothing more is claimed
    async with own.engine.connect() as connection:
        await connection.execute(text("set transaction read write"))
        ((name,),) = await connection.execute(text("select current_database()"))
        await connection.execute(text(f"alter database {name} reset default_transaction_read_only"))
        await connection.commit()
    await own.availability.wait()
    assert await own.run(handler, delivery) == Completed("done")
