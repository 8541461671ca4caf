"""The shop's app, with a bulk update of every order. WORKER_APP=bench.bulk_app:app."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.app import files, handlers
from jobs.orders.models import Order
from worker.app import App
from worker.bulk import update_many
from worker.chunk import Chunk, Step
from worker.handler import ChunkedHandler
from worker.job import Job

ORDERS_A_CHUNK = 500
"""Their rows are locked until the chunk commits, and whoever pays one of them waits for that."""


class Annotate(Job, name="bench.annotate"):
    """Write a line on every order, a line of its own on each."""


async def annotate(job: Annotate, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    del job
    following = select(Order.id).where(Order.id > (chunk.cursor or 0)).order_by(Order.id).limit(chunk.size)
    ids = (await session.scalars(following)).all()
    await update_many(session, Order, [Order.id, Order.cancel_reason], [(each, f"seen as {each}") for each in ids])
    return chunk.step(ids[-1] if ids else None, done=len(ids))


app = App([*handlers(files()), ChunkedHandler(Annotate, annotate, cursor=int, size=ORDERS_A_CHUNK)])
