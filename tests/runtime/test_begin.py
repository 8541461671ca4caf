"""How a run begins: one executor gets in, once; everybody else learns what came of it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncpg.transaction import Transaction
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Count, Grip, Note, effect
from tests.support.waiting import wait_until
from worker import ledger
from worker.chunk import Chunk, Step
from worker.delivery import Delivery
from worker.errors import Cancel, Permanent
from worker.handler import ChunkedHandler, Handler
from worker.outcome import Completed, Duplicate, Released, Retrying
from worker.pipelining import DirectConnection
from worker.retry import RetryPolicy
from worker.run import current_run


async def noting(job: Note, session: AsyncSession) -> dict[str, str]:
    await effect(session, job.text)
    return {"noted": job.text}


async def never(job: Note, session: AsyncSession) -> None:
    raise AssertionError("the handler was called")


NOTING = Handler(Note, noting)


async def test_a_job_from_the_outbox_is_applied_and_its_run_remembers_it(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    assert await bench.run(NOTING, delivery) == Completed({"noted": "a"})
    run = await bench.run_of(delivery)
    assert (run.status, run.attempt, run.result, run.from_outbox) == ("completed", 0, {"noted": "a"}, True)
    assert run.finished_at is not None
    assert await bench.effects() == ["a"]
    assert await bench.rows() == 0


async def test_the_same_delivery_again_is_a_duplicate_with_the_first_ones_result(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    await bench.run(NOTING, delivery)
    assert await bench.run(Handler(Note, never), delivery) == Duplicate({"noted": "a"})
    assert await bench.effects() == ["a"]


async def test_a_direct_job_that_is_delivered_often_is_applied_once(bench: Bench) -> None:
    delivery = bench.direct(Note(text="a"))
    outcomes = [await bench.run(NOTING, delivery) for _ in range(4)]
    assert outcomes == [Completed({"noted": "a"}), *[Duplicate({"noted": "a"})] * 3]
    assert await bench.effects() == ["a"]


async def test_two_workers_with_the_same_delivery_at_once_have_one_effect(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    outcomes = await asyncio.gather(*(side.run(NOTING, delivery) for side in (bench, other) * 3))
    assert outcomes.count(Completed({"noted": "a"})) == 1
    assert outcomes.count(Duplicate({"noted": "a"})) == 5
    assert await bench.effects() == ["a"]


async def test_two_workers_with_a_run_that_is_there_have_one_effect(bench: Bench, other: Bench) -> None:
    """Of a new run the unique key alone lets one in; of one that has failed before it is the row's lock."""

    async def failing(job: Note, session: AsyncSession) -> None:
        raise ValueError

    async def waiting(job: Note, session: AsyncSession) -> None:
        """In here the first stays until the second waits for the lock, or is in here, too."""
        within.append(job)
        await effect(session, "a")
        if len(within) == 1:
            began.set()
            await wait_until(second_has_come)

    async def second_has_come() -> bool:
        return len(within) > 1 or await other.is_waiting(wanted="transactionid")

    within, began = list[Note](), asyncio.Event()
    delivery = await bench.enqueued(Note(text="a"))
    await bench.run(Handler(Note, failing, retry=RetryPolicy(base=timedelta(0))), delivery)
    first = asyncio.create_task(bench.run(Handler(Note, waiting), delivery))
    await began.wait()
    assert await other.run(Handler(Note, waiting), delivery) == Duplicate(None)
    assert await first == Completed(None)
    assert await bench.effects() == ["a"]


@pytest.mark.parametrize("status", ["dead", "cancelled", "discarded"])
async def test_a_run_that_ended_otherwise_is_a_duplicate_too_and_tells_its_error(bench: Bench, status: str) -> None:
    delivery = await bench.enqueued(Note())
    await bench.all(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, error, finished_at) "
        "select id, enqueued_ms, name, queue, :status, true, 'Oh: no', now() from worker.outbox",
        status=status,
    )
    told = "CancelledError: Oh: no" if status == "cancelled" else "Oh: no"
    assert await bench.run(Handler(Note, never), delivery) == Duplicate(None, failed=told)
    assert await bench.rows() == 0


async def test_a_duplicate_tells_what_arq_result_held_the_first_time(bench: Bench) -> None:
    async def cancelling(job: Note, session: AsyncSession) -> None:
        raise Cancel("not wanted")

    async def failing(job: Note, session: AsyncSession) -> None:
        raise Permanent("no")

    for handler, told in ((cancelling, "CancelledError: not wanted"), (failing, "Permanent: no")):
        delivery = await bench.enqueued(Note())
        await bench.run(Handler(Note, handler), delivery)
        assert await bench.run(NOTING, delivery) == Duplicate(None, failed=told)


async def test_the_same_id_enqueued_at_another_time_is_another_job(bench: Bench) -> None:
    first = bench.direct(Note(text="first"), job_id="same", enqueued_ms=1)
    second = bench.direct(Note(text="second"), job_id="same", enqueued_ms=2)
    for delivery in (first, second):
        assert isinstance(await bench.run(NOTING, delivery), Completed)
    assert await bench.effects() == ["first", "second"]


async def test_a_run_whose_next_time_lies_ahead_is_put_back_for_as_long(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    await bench.all(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt, next_at) "
        "select id, enqueued_ms, name, queue, 'retrying', true, 2, now() + interval '1 h' from worker.outbox"
    )
    outcome = await bench.run(Handler(Note, never), delivery)
    assert isinstance(outcome, Released)
    assert timedelta(minutes=59) < outcome.delay <= timedelta(hours=1)
    assert await bench.runs() == [("retrying", 2)]


async def test_a_delivery_from_the_outbox_with_neither_row_nor_run_is_a_duplicate(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    await bench.all("delete from worker.outbox")
    assert await bench.run(Handler(Note, never), delivery) == Duplicate(None)
    assert await bench.runs() == []


async def test_a_duplicate_takes_the_outbox_row_of_its_identity_and_no_other(bench: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))
    await bench.run(NOTING, delivery)
    insert = (
        "insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, coalesces) "
        "select id, enqueued_ms + :later, name, queue, '', :epoch, true from worker.run"
    )
    await bench.all(insert, later=0, epoch=1)  # its own, sent again after a wipe
    await bench.all(insert, later=0, epoch=None)  # a younger one of the same millisecond, that waits
    await bench.all(insert, later=1, epoch=None)
    assert isinstance(await bench.run(NOTING, delivery), Duplicate)
    assert await bench.all("select sent_epoch from worker.outbox") == [(None,), (None,)]


async def test_the_runs_row_is_locked_while_its_handler_works(bench: Bench) -> None:
    seen: list[bool] = []

    async def looking(job: Note, session: AsyncSession) -> None:
        # Another connection: an uncommitted run is nothing to a reader, and in the way of a second insert.
        async with bench.engine.begin() as connection:
            await connection.execute(text("set local lock_timeout = '50ms'"))
            try:
                await connection.execute(
                    text(
                        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox) "
                        "select id, enqueued_ms, 'note', '', 'waiting', true from worker.outbox"
                    )
                )
            except Exception as error:  # noqa: BLE001 - whichever it is, it is told
                seen.append("lock timeout" in str(error))
                await connection.rollback()

    assert isinstance(await bench.run(Handler(Note, looking), await bench.enqueued(Note())), Completed)
    assert seen == [True]


async def test_a_lock_that_somebody_else_holds_is_waited_for_until_the_lock_timeout(
    bench: Bench, other: Bench, impatient: None
) -> None:
    delivery = await bench.enqueued(Note(), hold=Grip(ours=False))
    ended = asyncio.Event()

    async def slow(job: Note, session: AsyncSession) -> None:
        await ended.wait()

    first = asyncio.create_task(bench.run(Handler(Note, slow), delivery))
    await wait_until(lambda: _begun(bench))
    outcome = await other.run(Handler(Note, never), delivery)
    assert isinstance(outcome, Released)
    assert outcome.delay > timedelta(0)
    assert other.told.attempts == []
    ended.set()
    assert await first == Completed(None)


async def test_a_lock_that_is_let_go_in_time_is_had(bench: Bench, other: Bench) -> None:
    delivery = await bench.enqueued(Note(text="a"))

    async def hanging(job: Note, session: AsyncSession) -> None:
        await asyncio.Event().wait()

    first = asyncio.create_task(bench.run(Handler(Note, hanging), delivery))
    await wait_until(lambda: _begun(bench))
    second = asyncio.create_task(other.run(NOTING, delivery))
    await wait_until(lambda: bench.is_waiting(wanted="transactionid"))
    first.cancel()  # it writes nothing, so it can't come before the second once more
    assert isinstance(await second, Completed)
    assert isinstance(await first, Released)
    assert await bench.runs() == [("completed", 0)]


async def _begun(bench: Bench) -> bool:
    return bench.told.attempts != []


async def test_the_handler_learns_which_run_and_attempt_it_is(bench: Bench) -> None:
    seen: list[object] = []

    async def asking(job: Note, session: AsyncSession) -> None:
        run = current_run()
        seen.append((run.job_id, run.name, run.queue, run.attempt, run.enqueued_at))
        raise ValueError

    delivery = bench.direct(Note(), enqueued_ms=1_700_000_000_123)
    handler = Handler(Note, asking)
    await bench.run(handler, delivery)
    await bench.due(delivery)
    await bench.run(handler, delivery)
    enqueued_at = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
    assert seen == [(delivery.job_id, "note", "arq:queue", attempt, enqueued_at) for attempt in (1, 2)]
    assert bench.told.attempts == [1, 2]
    with pytest.raises(RuntimeError, match="outside a handler"):
        current_run()


async def test_a_chosen_id_has_no_enqueue_time_so_its_first_begin_stands_for_it(bench: Bench) -> None:
    async def asking(job: Note, session: AsyncSession) -> str:
        return current_run().enqueued_at.isoformat()

    delivery = await bench.enqueued(Note(), job_id="chosen")
    outcome = await bench.run(Handler(Note, asking), delivery)
    run = await bench.run_of(delivery)
    assert run.enqueued_ms == 0
    assert isinstance(outcome, Completed)
    assert outcome.result == run.created_at.isoformat()


async def test_a_job_id_sent_again_after_its_run_is_a_duplicate(bench: Bench) -> None:
    assert isinstance(await bench.run(NOTING, await bench.enqueued(Note(text="a"), job_id="chosen")), Completed)
    assert isinstance(await bench.run(NOTING, await bench.enqueued(Note(text="b"), job_id="chosen")), Duplicate)
    assert await bench.effects() == ["a"]
    assert await bench.rows() == 0


async def test_the_lease_is_told_of_each_transaction_and_how_long_it_may_take(bench: Bench) -> None:
    async def counting(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        at = (chunk.cursor or 0) + 1
        return chunk.step(at if at < job.upto else None)

    hold = Grip()
    handler = ChunkedHandler(Count, counting, cursor=int, timeout=timedelta(seconds=7))
    await bench.run(handler, bench.direct(Count(upto=3), hold=hold))
    assert hold.begun == [timedelta(seconds=7)] * 3


async def test_an_id_from_elsewhere_may_hold_what_postgresql_cant(bench: Bench) -> None:
    delivery = bench.direct(Note(text="a"), job_id="nul \0 and \ud800")
    assert isinstance(await bench.run(NOTING, delivery), Completed)
    assert isinstance(await bench.run(NOTING, delivery), Duplicate)
    assert await bench.all("select id from worker.run") == [("nul \\0 and \\ud800",)]


async def test_the_id_without_a_message_waits_for_the_sweep_where_postgresql_knows_the_job(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    lost = Delivery(delivery.job_id, "arq:queue", None, Grip(), 0, 0)
    assert isinstance(await bench.run(NOTING, lost), Released)


@pytest.fixture
def sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the runtime sends by the driver, a round trip each. asyncpg logs nothing of what SQLAlchemy sends."""
    statements: list[str] = []
    first = DirectConnection.first

    async def noted(connection: DirectConnection, query: str, *args: Any) -> Any:
        statements.append(f"{connection._held_back} {query}")
        return await first(connection, query, *args)

    def note(query: Any) -> None:
        statements.append(query.query)

    def checkout(dbapi_connection: Any, *_rest: object) -> None:
        dbapi_connection.driver_connection.add_query_logger(note)

    def checkin(dbapi_connection: Any, *_rest: object) -> None:
        dbapi_connection.driver_connection.remove_query_logger(note)

    monkeypatch.setattr(DirectConnection, "first", noted)
    event.listen(bench.engine.sync_engine, "checkout", checkout)
    event.listen(bench.engine.sync_engine, "checkin", checkin)
    yield statements
    event.remove(bench.engine.sync_engine, "checkout", checkout)
    event.remove(bench.engine.sync_engine, "checkin", checkin)


async def test_one_statement_begins_and_one_marks_it_done(bench: Bench, sent: list[str]) -> None:
    await bench.run(NOTING, bench.direct(Note()))  # the first of a connection prepares the statement
    delivery = await bench.enqueued(Note(text="a"))
    sent.clear()
    assert isinstance(await bench.run(NOTING, delivery), Completed)
    begin, complete, commit = sent
    assert begin.startswith("BEGIN ISOLATION LEVEL READ COMMITTED; ")
    assert commit == "COMMIT;"
    assert "insert into worker.run" in begin
    assert "update worker.run set status = 'completed'" in complete


async def test_a_direct_job_without_a_result_is_marked_done_by_the_statement_that_begins_it(
    bench: Bench, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PRECISION_S", 3600.0)

    async def silent(job: Note, session: AsyncSession) -> None:
        await effect(session, job.text)

    delivery = bench.direct(Note(text="a"))
    assert await bench.run(Handler(Note, silent), delivery) == Completed(None)
    assert not [statement for statement in sent if "update worker.run" in statement]
    run = await bench.run_of(delivery)
    assert (run.status, run.result, run.finished_at >= run.created_at) == ("completed", None, True)


async def test_a_job_from_the_outbox_doesnt_wait_for_its_relay_when_it_begins(bench: Bench, other: Bench) -> None:
    """The relay has sent it, and commits a moment later; taken for a zombie, it would be ended."""
    async with other.engine.connect() as relay:

        async def silent(job: Note, session: AsyncSession) -> None:
            await effect(session, job.text)
            await relay.commit()

        delivery = await bench.enqueued(Note(text="a"), hold=Grip())
        await relay.execute(text("select from worker.outbox for update"))
        assert await bench.run(Handler(Note, silent), delivery) == Completed(None)
    assert await bench.rows() == 0


async def test_one_that_takes_its_time_is_marked_again_at_its_end(
    bench: Bench, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(job: Note, session: AsyncSession) -> None:
        monkeypatch.setattr(ledger, "PRECISION_S", 0.0)

    await bench.run(Handler(Note, slow), bench.direct(Note()))
    assert "update worker.run set status = 'completed'" in sent[-2]


async def test_a_run_that_was_there_is_marked_at_its_end(bench: Bench, sent: list[str]) -> None:
    async def failing_once(job: Note, session: AsyncSession) -> None:
        if current_run().attempt == 1:
            raise ValueError

    delivery = await bench.enqueued(Note())
    handler = Handler(Note, failing_once, retry=RetryPolicy(base=timedelta(0)))
    assert isinstance(await bench.run(handler, delivery), Retrying)
    sent.clear()
    assert await bench.run(handler, delivery) == Completed(None)
    assert "update worker.run set status = 'completed'" in sent[-2]
    assert (await bench.runs(), await bench.rows()) == ([("completed", 1)], 0)


async def test_a_begin_that_is_interrupted_throws_its_connection_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg would take the next transaction for a savepoint of the one that never began, and commit nothing."""
    start = Transaction.start

    async def interrupted(transaction: Transaction) -> None:
        monkeypatch.setattr(Transaction, "start", start)
        await start(transaction)
        raise ValueError

    delivery = await bench.enqueued(Note(text="a"))
    monkeypatch.setattr(Transaction, "start", interrupted)
    assert isinstance(await bench.run(NOTING, delivery), Retrying)
    for text_ in ("b", "c"):
        assert isinstance(await bench.run(NOTING, await bench.enqueued(Note(text=text_))), Completed)
    assert await bench.effects() == ["b", "c"]


async def test_the_drivers_transaction_is_where_sqlalchemy_looks_for_its_own(bench: Bench) -> None:
    """worker/connection.py sets a private attribute: a version of SQLAlchemy that calls it otherwise fails here."""
    async with bench.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).dbapi_connection
        seen = [raw._transaction]
        await connection.execute(text("select 1"))
        seen.append(raw._transaction)
        await connection.rollback()
        seen.append(raw._transaction)
    assert [type(transaction) for transaction in seen] == [type(None), Transaction, type(None)]
