"""A connection that breaks, and a PostgreSQL that is away: nothing of it is the job's fault."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import asyncpg
import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Grip, Note, backend, effect
from tests.runtime.postgres_proxy import PostgresProxy
from tests.support.waiting import wait_until
from worker.attempt import IMMEDIATE_RETRIES
from worker.call import Work
from worker.database import connect, create_engine
from worker.dev import EmbeddedPostgres
from worker.faults import LedgerBusy
from worker.handler import Handler
from worker.ledger import Seen
from worker.outcome import BUSY, Cancelled, Completed, Dead, Released, Retrying
from worker.retry import RetryPolicy
from worker.transaction import Transactor


async def end_backend(bench: Bench, session: AsyncSession) -> None:
    """As an administrator does, or the server when it restarts."""
    await bench.one("select pg_terminate_backend(:pid, 5000)", pid=await backend(session))


def losing(bench: Bench, times: int, tries: list[int]) -> Handler[Note]:
    """A handler whose connection is ended under it, the first `times` times."""

    async def handler(job: Note, session: AsyncSession) -> str:
        tries.append(1)
        await effect(session, "work")
        if len(tries) <= times:
            await end_backend(bench, session)
        await effect(session, "more")
        return "done"

    return Handler(Note, handler, retry=RetryPolicy(attempts=2, base=timedelta(0)))


async def test_a_lost_connection_is_tried_again_at_once_and_burns_no_attempt(bench: Bench) -> None:
    tries: list[int] = []
    assert await bench.run(losing(bench, IMMEDIATE_RETRIES, tries), await bench.enqueued(Note())) == Completed("done")
    assert len(tries) == 1 + IMMEDIATE_RETRIES == 4
    assert await bench.effects() == ["work", "more"]
    assert await bench.runs() == [("completed", 0)]
    assert bench.availability.is_up()


async def test_a_pool_that_is_all_taken_burns_no_attempt_and_isnt_taken_for_a_server_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = bench.direct(Note())
    monkeypatch.setattr(bench.engine.pool, "_timeout", 0.01)
    async with AsyncExitStack() as taken:
        with suppress(PoolTimeout):
            while not (await taken.enter_async_context(bench.engine.connect())).closed:
                pass
        outcome = await bench.run(losing(bench, 0, []), delivery)
        assert isinstance(outcome, Released)
        assert await bench.availability.check()
    assert await bench.run(losing(bench, 0, []), delivery) == Completed("done")


async def test_then_it_counts_as_a_failure_where_a_probe_connects(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    handler = losing(bench, 1_000, [])
    outcomes = [await bench.run(handler, delivery) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [Retrying, Dead]
    assert await bench.runs() == [("dead", 2)]
    assert await bench.effects() == []


async def test_a_connection_lost_in_the_middle_of_a_query_is_one_too(bench: Bench) -> None:
    tries: list[int] = []

    async def handler(job: Note, session: AsyncSession) -> str:
        tries.append(1)
        if len(tries) == 1:
            await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))
        return "done"

    assert await bench.run(Handler(Note, handler), await bench.enqueued(Note())) == Completed("done")
    assert await bench.runs() == [("completed", 0)]


async def test_an_idle_connection_that_died_in_the_pool_costs_nothing(bench: Bench) -> None:
    async def noting(job: Note, session: AsyncSession) -> None:
        await effect(session, "a")

    delivery = await bench.enqueued(Note())
    await bench.all(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    with suppress(DBAPIError):
        await bench.one("select pg_terminate_backend(pg_backend_pid())")
    assert await bench.run(Handler(Note, noting), delivery) == Completed(None)
    assert bench.told.attempts == [1]


async def test_a_handler_that_swallows_the_loss_of_its_connection_has_failed(bench: Bench) -> None:
    async def swallowing(job: Note, session: AsyncSession) -> None:
        await effect(session, "work")
        await end_backend(bench, session)
        with suppress(DBAPIError):
            await effect(session, "more")

    outcome = await bench.run(Handler(Note, swallowing), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert outcome.error.startswith("SwallowedError")
    assert await bench.effects() == []


async def test_one_that_swallows_a_statement_cut_off_on_its_way_is_told_what_to_do_instead(bench: Bench) -> None:
    async def cutting_off(job: Note, session: AsyncSession) -> None:
        with suppress(TimeoutError):
            async with session.begin_nested(), asyncio.timeout(0.05):
                await session.execute(text("select pg_sleep(60)"))

    outcome = await bench.run(Handler(Note, cutting_off), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert "give that `set local statement_timeout` inside" in outcome.error


async def test_a_handlers_own_network_error_is_its_own_failure(bench: Bench) -> None:
    async def calling(job: Note, session: AsyncSession) -> None:
        raise ConnectionResetError("the bank hung up")

    outcome = await bench.run(Handler(Note, calling), await bench.enqueued(Note()))
    assert isinstance(outcome, Retrying)
    assert bench.told.attempts == [1]


async def test_while_postgresql_is_away_nothing_counts_and_it_is_said_once(
    far: Bench, bench: Bench, proxy: PostgresProxy
) -> None:
    async def losing_it(job: Note, session: AsyncSession) -> None:
        await proxy.stop()
        await effect(session, "work")

    async def noting(job: Note, session: AsyncSession) -> str:
        await effect(session, "a")
        return "done"

    first, *rest = [await bench.enqueued(Note()) for _ in range(4)]
    with structlog.testing.capture_logs() as logs:
        outcomes = [
            await far.run(Handler(Note, losing_it), first),
            *await asyncio.gather(*(far.run(Handler(Note, noting), delivery) for delivery in rest)),
        ]
        assert all(outcome == Released("PostgreSQL is away", timedelta(seconds=1)) for outcome in outcomes)
        assert not far.availability.is_up()  # so nothing is claimed
        assert await bench.runs() == []
        await proxy.start()
        await asyncio.wait_for(far.availability.wait(), 10)
    assert [line["event"] for line in logs] == ["database_away", "database_back"]
    assert [await far.run(Handler(Note, noting), delivery) for delivery in (first, *rest)] == [Completed("done")] * 4
    assert await bench.runs() == [("completed", 0)] * 4


async def test_a_restart_of_postgresql_in_mid_transaction_loses_nothing_and_burns_nothing(
    bench: Bench, postgres: EmbeddedPostgres
) -> None:
    crashes: list[int] = []

    async def crashing(job: Note, session: AsyncSession) -> str:
        await effect(session, "work")
        if not crashes:
            crashes.append(1)
            await asyncio.to_thread(postgres.crash)
            await asyncio.to_thread(postgres.start)
        await effect(session, "more")
        return "done"

    delivery = await bench.enqueued(Note())
    outcome = await bench.run(Handler(Note, crashing), delivery)
    if isinstance(outcome, Released):  # it wasn't quite back when it was asked
        await asyncio.wait_for(bench.availability.wait(), 10)
        outcome = await bench.run(Handler(Note, crashing), delivery)
    assert outcome == Completed("done")
    assert await bench.effects() == ["work", "more"]
    assert await bench.runs() == [("completed", 0)]


async def test_the_handlers_connection_goes_back_to_the_pool_however_the_attempt_ends(bench: Bench) -> None:
    async def cutting(job: Note, session: AsyncSession) -> None:
        await end_backend(bench, session)
        raise ValueError

    async def failing(job: Note, session: AsyncSession) -> None:
        await session.execute(text("select 1 / 0"))

    for handler in (cutting, failing) * 5:  # more often than the pool has connections
        assert isinstance(await bench.run(Handler(Note, handler), await bench.enqueued(Note())), Retrying)
    await wait_until(lambda: everything_is_checked_in(bench))


async def everything_is_checked_in(bench: Bench) -> bool:
    return "Current Checked out connections: 0" in bench.engine.pool.status()


@pytest.fixture(scope="module")
def tcp_url() -> Iterator[str]:
    """A server that listens on TCP, where keepalives mean something."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"listen_addresses": "127.0.0.1", "port": str(port)}
    with EmbeddedPostgres(durable=False, options=options):
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


async def test_connections_set_tcp_keepalive_and_user_timeouts_of_15_seconds_on_both_sides(tcp_url: str) -> None:
    connection = await connect(tcp_url, "test")
    names = ("tcp_user_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
    server = [await connection.fetchval(f"show {name}") for name in names]
    sock: socket.socket = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # it has no public door
    options = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    client = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    await connection.close()
    assert server == ["15000", "5", "5", "2"]  # 5 s idle, then two tries of 5 s
    assert client == [15_000, 5, 5, 2]


async def test_a_pool_that_is_all_taken_at_an_immediate_retry_burns_no_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = iter([LedgerBusy(is_conflict=True), PoolTimeout("all are taken")])

    async def raising(_self: Transactor, _work: Work, on_begun: Callable[[Seen], None]) -> Completed:
        error = next(raised)
        if isinstance(error, LedgerBusy):
            on_begun(Seen(0))
        raise error

    monkeypatch.setattr(Transactor, "carry_out", raising)
    assert await bench.run(losing(bench, 0, []), bench.direct(Note())) == Released("no connection is free", BUSY)
    assert await bench.runs() == []


@pytest.mark.parametrize("aborted", [True, False])
async def test_who_is_cancelled_while_postgresql_is_looked_for_is_not_run_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, aborted: bool
) -> None:
    hold, tries = Grip(), list[int]()
    attempt = asyncio.create_task(bench.run(losing(bench, 1, tries), bench.direct(Note(), hold=hold)))

    async def check() -> bool:
        hold.aborted = aborted
        attempt.cancel()
        return True

    monkeypatch.setattr(bench.availability, "check", check)
    assert await attempt == (Cancelled("aborted") if aborted else Released("the worker stops"))
    assert len(tries) == 1


async def test_every_workers_connection_says_whose_it_is(bench: Bench) -> None:
    ((name,),) = await bench.all("select application_name from pg_stat_activity where pid = pg_backend_pid()")
    assert name.startswith("ratchet worker ")


async def test_postgresql_that_refuses_us_is_told_without_the_password(postgres: EmbeddedPostgres) -> None:
    url = postgres.database_url("nowhere").replace("postgres@", "postgres:hunter2@")
    engine = create_engine(url, pool_size=1)
    with pytest.raises(ConnectionError, match="check DATABASE_URL") as refusal:
        async with engine.connect():
            pass
    assert "hunter2" not in str(refusal.value)
    assert isinstance(refusal.value.__cause__, asyncpg.InvalidCatalogNameError)
    await engine.dispose()
