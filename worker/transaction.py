"""One transaction of one job: begin, call the handler, mark it done, commit. Raises whatever goes wrong."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
from pydantic_core import from_json
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker import ledger, partitions, progress, stray_commit
from worker.call import Work, call, timeouts_of
from worker.chunk import Step
from worker.connection import begin, begin_with, commit, connected, driver_of
from worker.deadline import Deadlines
from worker.driver import Driver
from worker.errors import Permanent, SwallowedError
from worker.faults import fate_of, has_waited, in_ledger
from worker.guard import GUARD, Guard, GuardedSession
from worker.handler import ChunkedHandler
from worker.lazy_session import LazySession
from worker.outcome import OFFER_AGAIN, Completed, Released, Yielded
from worker.partitions import Split
from worker.stored import as_jsonb
from worker.zombies import Zombies


class Transactor:
    """Carries out transactions on one engine, each with a fresh session."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._zombies = Zombies(engine)
        self._deadlines = Deadlines()

    async def carry_out(
        self, work: Work, on_begun: Callable[[ledger.Seen], None]
    ) -> Completed | Yielded | Released | ledger.Ended | ledger.NotDue:
        """One transaction; nothing of it stays unless it commits. `on_begun` is told what came before it.

        Raises what the handler raises, LedgerBusy, FateUnknown, database errors and those of errors.py.
        """
        guard = Guard()
        async with connected(self._engine, guard) as connection:
            begun = await self._begin(connection, work)
            if isinstance(begun, ledger.NotDue):
                return begun
            driver = driver_of(connection)
            if isinstance(begun, ledger.Ended):
                with in_ledger():
                    await ledger.take_row(connection, work.run)
                await fate_of(commit(connection))
                return begun
            if begun.is_parted and not isinstance(work.handler, ChunkedHandler):
                return Released(partitions.NO_CHUNKS, OFFER_AGAIN)
            if isinstance(work.handler, ChunkedHandler):
                with in_ledger():
                    begun.progress = await progress.read(driver, work.run, work.handler)
                    if begun.progress.partitions is not None and await partitions.carry_on(driver, work.run):
                        return Released(partitions.CARRY_ON, partitions.LOOK_AGAIN, clears=True)
            on_begun(begun.seen)
            working = self._work(connection, driver, work, begun, guard)
            outcome = await stray_commit.noticed(working, self._engine, connection, [work.run], begun.transaction)
            await fate_of(commit(connection))
            return outcome

    async def _work(
        self, connection: AsyncConnection, driver: Driver, work: Work, begun: ledger.Begun, guard: Guard
    ) -> Completed | Yielded:
        """What comes between begin and commit."""
        if begun.progress is not None and begun.progress.partitions is not None:
            with in_ledger():
                result = await partitions.summed_up(connection, work.run, begun.progress.partitions)
                return await _complete(driver, work, begun, as_jsonb(result, "result"))
        session = LazySession(GuardedSession, bind=connection, info={GUARD: guard})
        started = time.monotonic()
        returned = await call(work, begun, session, guard, self._deadlines)
        took = timedelta(seconds=time.monotonic() - started)
        if connection.invalidated or not connection.in_transaction():
            raise SwallowedError(lost=connection.invalidated)
        if guard.rolled_back or not driver.is_in_transaction():
            begun = replace(begun, marked_at=None)
        with in_ledger():
            return await _mark(connection, driver, work, begun, returned, took=took)

    async def _begin(self, connection: AsyncConnection, work: Work) -> ledger.Begun | ledger.Ended | ledger.NotDue:
        isolation = work.handler.isolation
        with in_ledger():
            # A chunk mostly isn't the last, and a job's outbox row may still be its relay's for a moment.
            marks = not isinstance(work.handler, ChunkedHandler) and not work.run.from_outbox
            begin_run = partial(ledger.begin, run=work.run, timeouts=timeouts_of(work.handler), marks=marks)
            try:
                return await begin_run(partial(begin_with, connection, isolation))
            except asyncpg.PostgresError as error:
                if not has_waited(error) or not await work.delivery.hold.is_ours():
                    raise
            # The lease is ours, so whoever holds the lock has lost it: a zombie.
            await connection.rollback()
            driver = await begin(connection, isolation)
            async with self._zombies.ended_for(driver):
                return await begin_run(driver.fetchrow)


async def _mark(
    connection: AsyncConnection, driver: Driver, work: Work, begun: ledger.Begun, returned: object, *, took: timedelta
) -> Completed | Yielded:
    """Write into the ledger what the handler has done, in the handler's own transaction."""
    handler = work.handler
    if not isinstance(handler, ChunkedHandler) or begun.progress is None:
        return await _complete(driver, work, begun, as_jsonb(returned, "result"))
    if isinstance(returned, Split):
        if not work.run.from_outbox:
            await ledger.adopt(connection, work.run, work.raw)
        return await partitions.part(
            connection, work.run, returned, handler, message=work.raw, transaction=begun.transaction
        )
    if not isinstance(returned, Step):
        raise Permanent(
            f"The chunked handler of {work.run.name} returned {type(returned).__name__}; return chunk.step(…)."
        )
    step: Step[Any] = returned  # pyright: ignore[reportUnknownVariableType]  # isinstance can't tell its parameter
    counts = await progress.advance(
        connection, work.run, begun.progress, step, handler, took=took, transaction=begun.transaction
    )
    if step.cursor is None:
        return await _complete(driver, work, begun, counts)
    if not work.run.from_outbox:
        await ledger.adopt(connection, work.run, work.raw)
    return Yielded()


async def _complete(driver: Driver, work: Work, begun: ledger.Begun, result: str) -> Completed:
    if not ledger.is_marked(begun, result):
        await ledger.complete(driver, work.run, begun, result)
    return Completed(from_json(result))
