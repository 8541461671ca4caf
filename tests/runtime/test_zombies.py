"""A worker that was stopped or cut off in mid-transaction: whoever takes its job over ends its backend."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.runtime.bench import Bench, Grip, Note, effect
from worker.database import create_engine
from worker.driver import SERVER_SETTINGS
from worker.handler import Handler
from worker.outcome import Completed, Duplicate, Released
from worker.zombies import Zombies


async def noting(job: Note, session: AsyncSession) -> str:
    await effect(session, "mine")
    return "done"


LOCK_IT = text(
    "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox) "
    "select id, enqueued_ms, name, queue, 'waiting', true from worker.outbox"
)


async def test_a_stopped_workers_backend_is_ended_by_the_one_that_takes_over_and_its_work_is_undone(
    bench: Bench, shared_url: str
) -> None:
    delivery = await bench.enqueued(Note())
    assert delivery.message is not None
    sleeper = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.runtime.sleeper", shared_url, delivery.job_id, delivery.message.decode(),
        stdin=PIPE, stdout=PIPE,
    )  # fmt: skip
    assert sleeper.stdout is not None
    assert await sleeper.stdout.readline() == b"works\n"
    sleeper.send_signal(signal.SIGSTOP)
    with structlog.testing.capture_logs() as logs:
        outcome = await bench.run(Handler(Note, noting), delivery)
    sleeper.send_signal(signal.SIGCONT)
    told, _ = await sleeper.communicate(b"\n")
    assert outcome == Completed("done")
    assert {"event": "zombie_ended", "backends": 1, "log_level": "warning"} in logs
    # Woken, it finds its connection gone, begins anew, and learns that the job is done.
    assert told.decode().strip() == str(Duplicate("done"))
    assert await bench.effects() == ["mine"]
    assert await bench.runs() == [("completed", 0)]


async def test_without_the_lease_nobody_is_ended_and_the_job_is_put_back(
    bench: Bench, other: Bench, impatient: None
) -> None:
    delivery = await bench.enqueued(Note(), hold=Grip(ours=False))
    async with other.engine.connect() as holder:
        await holder.execute(LOCK_IT)
        assert isinstance(await bench.run(Handler(Note, noting), delivery), Released)
        await holder.commit()
    assert await bench.effects() == []
    assert bench.told.faults == []


async def test_a_persons_psql_is_never_ended(bench: Bench, shared_url: str, impatient: None) -> None:
    delivery = await bench.enqueued(Note())
    psql = create_engine(shared_url, pool_size=1, application="psql")
    async with psql.connect() as person:
        await person.execute(LOCK_IT)
        assert isinstance(await bench.run(Handler(Note, noting), delivery), Released)
        await person.rollback()
    await psql.dispose()
    assert await bench.run(Handler(Note, noting), delivery) == Completed("done")


async def test_a_workers_transaction_that_began_since_we_waited_is_not_ended(
    bench: Bench, other: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's that was quicker, or the woken zombie's next: by its begin it can't be the one that we met."""
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "300")
    delivery = await bench.enqueued(Note())
    async with other.engine.connect() as living:
        await living.execute(LOCK_IT)
        outcome = await bench.run(Handler(Note, noting), delivery)  # it waits 0.6 s; the limit is 2 s
        assert isinstance(outcome, Released)
        await living.commit()


async def test_many_jobs_that_wait_for_zombies_share_one_helper_connection(bench: Bench, other: Bench) -> None:
    deliveries = [await bench.enqueued(Note()) for _ in range(4)]  # with the helper, all of the pool's five
    async with other.engine.connect() as zombie:
        await zombie.execute(LOCK_IT)
        outcomes = await asyncio.gather(*(bench.run(Handler(Note, noting), delivery) for delivery in deliveries))
        await zombie.invalidate()
    assert outcomes == [Completed("done")] * 4


async def test_a_helper_that_has_failed_is_followed_by_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though some job waits all the while."""
    helpers = Zombies(bench.engine)
    failed, looked_again = asyncio.Event(), asyncio.Event()

    async def end(_self: Zombies, _connection: AsyncConnection) -> int:
        if not failed.is_set():
            failed.set()
            raise ConnectionError
        looked_again.set()
        return 0

    monkeypatch.setattr(Zombies, "_end", end)
    async with (
        bench.engine.connect() as first,
        bench.engine.connect() as second,
        helpers.ended_for(await driver(first)),
    ):
        await failed.wait()
        async with helpers.ended_for(await driver(second)):
            await asyncio.wait_for(looked_again.wait(), 10)


async def driver(connection: AsyncConnection) -> Any:
    raw: Any = await connection.get_raw_connection()
    return raw.driver_connection
