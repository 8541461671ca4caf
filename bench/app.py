"""Our side of the bench: the jobs as a user of Ratchet would write them. WORKER_APP=bench.app:app."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from bench.inside import Given
from bench.order import pay, pay_many
from bench.tally import Tally
from worker.app import App
from worker.handler import AnyHandler, BatchHandler, Handler
from worker.job import Job


class Numbered(Job):
    n: int


class NoOp(Numbered, name="bench.noop"):
    """Nothing, and no run is kept."""


class Kept(Numbered, name="bench.kept"):
    """Nothing, exactly once: the ledger remembers it."""


class PayOrder(Numbered, name="bench.order"):
    """One order, exactly once."""


class PayBatch(Numbered, name="bench.batch"):
    """One order of many that are paid together, each exactly once."""


JOBS: dict[str, type[Numbered]] = {"noop": NoOp, "kept": Kept, "order": PayOrder, "batch": PayBatch}


async def start(tally: Tally, job: Numbered, session: AsyncSession) -> None:
    del session
    tally.mark(job.n)


async def pay_order(tally: Tally, job: PayOrder, session: AsyncSession) -> None:
    tally.mark(job.n)
    await pay(session, job.n)


async def pay_batch(tally: Tally, jobs: Sequence[PayBatch], session: AsyncSession) -> None:
    numbers = [job.n for job in jobs]
    tally.mark_many(numbers)
    await pay_many(session, numbers)


def handlers(tally: Tally) -> list[AnyHandler]:
    """Bound to what counts their starts."""
    return [
        Handler(NoOp, partial(start, tally), once=False),
        Handler(Kept, partial(start, tally)),
        Handler(PayOrder, partial(pay_order, tally)),
        BatchHandler(PayBatch, partial(pay_batch, tally), max_size=500, linger=timedelta(milliseconds=20)),
    ]


app = App(handlers(Given.from_environment().tally))
