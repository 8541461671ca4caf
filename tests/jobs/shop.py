"""What the tests of the domain begin with, and how they run a job for real."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.orders.models import Order, OrderLine
from jobs.products.models import Product
from jobs.users.models import User
from worker.app import App
from worker.availability import Availability
from worker.delivery import Delivery, NoHold
from worker.executor import Executor
from worker.job import Job
from worker.outbox import enqueue, enqueue_many
from worker.outcome import Completed, Outcome
from worker.reporting.observer import Observers
from worker.testing import drain

LONG_AGO = datetime(2021, 1, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """Jobs that are enqueued, committed, and run by the real executor."""

    app: App
    engine: AsyncEngine

    async def outcome(self, job: Job) -> Outcome:
        """What comes of `job`: of its last delivery, where it is chunked."""
        async with AsyncSession(self.engine) as session, session.begin():
            enqueue(session, job)
        return [outcome for message, outcome in await drain(self.app, self.engine) if message.name == job.job_name][-1]

    async def result(self, job: Job) -> Any:
        outcome = await self.outcome(job)
        assert isinstance(outcome, Completed), outcome
        return outcome.result

    async def together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What comes of `jobs` that are delivered at once, in their order."""
        async with AsyncSession(self.engine) as session, session.begin():
            enqueue_many(session, jobs)
        rows = await self.rows("select id, queue, message from worker.outbox order by seq")
        availability = Availability(self.engine)
        executor = Executor(self.app.handlers, self.engine, Observers(), availability, "the shop")
        deliveries = [Delivery(job_id, queue, message, NoHold(), 0, 0) for job_id, queue, message in rows]
        reports = await asyncio.gather(*(executor.execute(delivery) for delivery in deliveries))
        await availability.close()
        return [report.outcome for report in reports]

    async def add(self, *rows: object) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            session.add_all(rows)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]


async def rows(session: AsyncSession, query: str) -> list[tuple[Any, ...]]:
    """What `query` finds once all that was added is flushed."""
    await session.flush()
    return [tuple(row) for row in await session.execute(text(query))]


def names(folder: Path) -> list[str]:
    """What lies in `folder`, drafts among it."""
    return sorted(path.name for path in folder.iterdir())


async def a_user(session: AsyncSession, email: str = "ada@example.com", **fields: Any) -> User:
    user = User(email=email, name="Ada", **fields)
    session.add(user)
    await session.flush()
    return user


async def a_product(
    session: AsyncSession, sku: str = "TEA", price_cents: int = 250, stock: int | None = None
) -> Product:
    product = Product(sku=sku, name=sku.title(), price_cents=price_cents, stock=stock)
    session.add(product)
    await session.flush()
    return product


async def an_order(
    session: AsyncSession, reference: str = "R-1", lines: tuple[tuple[str, int], ...] = (("TEA", 2),), **fields: Any
) -> Order:
    """An order of the first user, each piece at 1 dollar."""
    fields.setdefault("user_id", (await rows(session, "select min(id) from users"))[0][0])
    order = Order(reference=reference, total_cents=100 * sum(quantity for _, quantity in lines), **fields)
    session.add(order)
    await session.flush()
    session.add_all(
        OrderLine(order_id=order.id, line_no=number, sku=sku, quantity=quantity, amount_cents=100 * quantity)
        for number, (sku, quantity) in enumerate(lines, start=1)
    )
    await session.flush()
    return order
