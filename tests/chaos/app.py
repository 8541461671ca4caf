"""The workers' side of the chaos: the shop's own jobs, each of which notes that it was applied.

`old` and `new` are two versions of one application: the old one doesn't know all jobs.
"""

import asyncio
import gc
import linecache
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.orders.batches import ship_orders
from jobs.orders.contracts import PayOrder, PlaceOrder, ShipOrder
from jobs.orders.handlers import pay_order
from jobs.orders.placing import place_order
from worker.app import App
from worker.chunk import Chunk, Step
from worker.errors import Snooze
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.retry import RetryPolicy
from worker.run import current_run, current_runs

SLOTS = 8
"""Jobs at once of each worker process."""
MEET_WITHIN_S = 20
LINGER_S = 0.3

PATIENT = RetryPolicy(attempts=10_000, base=timedelta(seconds=0.1), factor=2, cap=timedelta(seconds=2))
"""Nothing that the chaos does may make a job dead."""

_EFFECT = text("insert into chaos.effect (name, subject, job_id) values (:name, :subject, :job_id)")
_SHOP_EFFECTS = text("""
insert into chaos.effect (name, subject, job_id)
select :name, orders.reference, given.job_id
from unnest(cast(:order_ids as bigint[]), cast(:job_ids as text[])) as given (order_id, job_id)
    left join orders on orders.id = given.order_id
""")
_MEMORY = text("insert into chaos.memory (blocks) values (:blocks)")
_SLEEP = text("select pg_sleep(:s)")
_WANTED = text("insert into chaos.wanted (name, subject, how) values (:name, :subject, 'handler')")


class Wrap(Job, name="chaos.wrap"):
    """Known to the new version alone. Some fail at first, some ask for a wait."""

    number: int
    token: str
    """A secret that may be written nowhere."""


class Count(Job, name="chaos.count"):
    """One effect a chunk."""

    number: int
    upto: int


class Meet(Job, name="chaos.meet"):
    """Ends only when as many of it as the worker has slots run at once, each with a connection of its own.

    One of them notes what the process has in memory.
    """

    number: int


class Hiccup(Exception):
    """The first attempt of some jobs."""


async def place(job: PlaceOrder, session: AsyncSession) -> dict[str, int]:
    began()
    placed = await place_order(job, session)
    await effect(session, PlaceOrder, job.reference)
    await linger(session)
    await session.execute(_WANTED, {"name": PayOrder.job_name, "subject": job.reference})
    enqueue(session, PayOrder(order_id=placed["order_id"]))
    return placed


async def pay(job: PayOrder, session: AsyncSession) -> dict[str, int]:
    began()
    paid = await pay_order(job, session)
    await session.flush()
    effects = {"name": PayOrder.job_name, "order_ids": [job.order_id], "job_ids": [current_run().job_id]}
    await session.execute(_SHOP_EFFECTS, effects)
    await linger(session)
    reference = await session.scalar(text("select reference from orders where id = :id"), {"id": job.order_id})
    await session.execute(_WANTED, {"name": ShipOrder.job_name, "subject": reference})
    return paid


async def ship(jobs: Sequence[ShipOrder], session: AsyncSession) -> list[dict[str, object]]:
    began()
    shipped = await ship_orders(jobs, session)
    order_ids, job_ids = [job.order_id for job in jobs], [run.job_id for run in current_runs()]
    effects = {"name": ShipOrder.job_name, "order_ids": order_ids, "job_ids": job_ids}
    await session.execute(_SHOP_EFFECTS, effects)
    await linger(session)
    return shipped


async def wrap(job: Wrap, session: AsyncSession) -> None:
    began()
    await effect(session, Wrap, f"wrap-{job.number}")
    if job.number % 5 == 0 and current_run().attempt == 1:
        raise Hiccup
    if job.number % 5 == 1 and random.random() < 0.5:
        raise Snooze(timedelta(seconds=0.2))


async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    at = (chunk.cursor or 0) + 1
    await effect(session, Count, f"count-{job.number}-{at}")
    await linger(session)
    return chunk.step(at if at < job.upto else None, done=1, total=job.upto, counts={"chunks": 1})


async def meet(job: Meet, session: AsyncSession, barrier: asyncio.Barrier) -> None:
    del job
    await session.execute(text("select 1"))
    async with asyncio.timeout(MEET_WITHIN_S):
        place = await barrier.wait()
    if place == 0:
        await session.execute(_MEMORY, {"blocks": live_blocks()})


def live_blocks() -> int:
    """Blocks of memory that Python's objects hold: without garbage, and without the source lines of past tracebacks.

    Those come once, as many as there are files that an error may pass through. Resident memory would tell less: between
    two collections it grows by garbage, and what was freed mostly stays with the allocator.
    """
    linecache.clearcache()
    gc.collect()
    return sys.getallocatedblocks()


async def linger(session: AsyncSession) -> None:
    """Between the work and its commit, in a statement or out of one, so that faults meet it there."""
    match random.randrange(4):
        case 0:
            await session.execute(_SLEEP, {"s": random.uniform(0, LINGER_S)})
        case 1:
            await asyncio.sleep(random.uniform(0, LINGER_S))
        case _:
            pass


def began() -> None:
    """One line for each job of the attempt: what is begun twice was delivered twice, or failed."""
    structlog.get_logger("chaos").info("began", ids=[run.job_id for run in current_runs()])


async def effect(session: AsyncSession, job: type[Job], subject: str) -> None:
    note = {"name": job.job_name, "subject": subject, "job_id": current_run().job_id}
    await session.execute(_EFFECT, note)


OLD = (
    Handler(PlaceOrder, place, retry=PATIENT),
    Handler(PayOrder, pay, retry=PATIENT),
    BatchHandler(ShipOrder, ship, retry=PATIENT, max_size=50, linger=timedelta(milliseconds=20)),
    ChunkedHandler(Count, count, cursor=int, retry=PATIENT),
    Handler(Meet, partial(meet, barrier=asyncio.Barrier(SLOTS)), retry=replace(PATIENT, attempts=1)),
)
old = App(handlers=OLD)
new = App(handlers=(*OLD, Handler(Wrap, wrap, retry=PATIENT)))
