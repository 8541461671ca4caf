"""One transaction of many jobs: begin all, call the handler once, mark all done, commit. Raises whatever goes wrong."""

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from worker import ledger_many as ledger
from worker import stray_commit
from worker.call import Work, call_many, timeouts_of
from worker.connection import begin, commit, connected
from worker.deadline import Deadlines
from worker.driver import Driver
from worker.errors import SwallowedError
from worker.faults import fate_of, in_ledger
from worker.guard import GUARD, Guard, GuardedSession
from worker.lazy_session import LazySession
from worker.ledger import Begun, Ended, NotDue, is_marked
from worker.outcome import Completed
from worker.stored import as_jsonb

Share: TypeAlias = tuple[Completed | Ended | NotDue | None, int]
"""What a transaction came to for one of its jobs, and the failures that it saw. None: the run wasn't to be had."""


class BatchTransactor:
    """Carries out transactions of many on one engine, each with a fresh session."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._deadlines = Deadlines()

    async def carry_out(self, works: Sequence[Work], on_begun: Callable[[], None]) -> list[Share]:
        """One transaction for all, which have one handler; nothing of it stays unless it commits.

        `on_begun` is called once it has a connection and the runs. Raises as Transactor.carry_out does.
        """
        guard, runs = Guard(), [work.run for work in works]
        async with connected(self._engine, guard) as connection:
            with in_ledger():
                driver = await begin(connection, works[0].handler.isolation)
                begun = await ledger.begin(driver, runs, timeouts_of(works[0].handler))
                ended = [run for run, one in zip(runs, begun, strict=True) if isinstance(one, Ended)]
                if ended:
                    await ledger.take_rows(driver, ended)
            on_begun()
            shares: list[Share] = [(None, 0) if isinstance(one, Begun) else (one, 0) for one in begun]
            live = [(place, one) for place, one in enumerate(begun) if isinstance(one, Begun)]
            if live:
                called, seen = [works[place] for place, _ in live], [one for _, one in live]
                runs = [work.run for work in called]
                working = self._work(connection, driver, called, seen, guard)
                results = await stray_commit.noticed(working, self._engine, connection, runs, seen[0].transaction)
                for (place, one), result in zip(live, results, strict=True):
                    shares[place] = Completed(json.loads(result)), one.failures
            await fate_of(commit(connection))
            return shares

    async def _work(
        self, connection: AsyncConnection, driver: Driver, works: Sequence[Work], begun: Sequence[Begun], guard: Guard
    ) -> list[str]:
        """What comes between begin and commit. Returns the results as JSON."""
        session = LazySession(GuardedSession, bind=connection, info={GUARD: guard})
        returned = await call_many(works, begun, session, guard, self._deadlines)
        if connection.invalidated or not connection.in_transaction():
            raise SwallowedError(lost=connection.invalidated)
        results = [as_jsonb(result, "result") for result in returned]
        is_intact = not guard.rolled_back and driver.is_in_transaction()
        left = [
            (work.run, result)
            for work, one, result in zip(works, begun, results, strict=True)
            if not (is_intact and is_marked(one, result))
        ]
        if left:
            with in_ledger():
                await ledger.complete(driver, left, begun[0].transaction)
        return results
