"""The demo's producer, a process of its own: places, pays and cancels orders in all the ways a job can be enqueued.

Prints one JSON object at the end: how many messages of each job it has enqueued, and how many orders it placed in
transactions that it rolled back.
"""

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from arq.connections import ArqRedis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.demo.shop import NEVER, SEED, Article, assortment
from jobs.orders.contracts import CancelOrder, PayOrder, PlaceOrder
from jobs.orders.models import Order
from jobs.users.models import User
from worker.broker import connect_broker
from worker.database import create_engine
from worker.models import Run
from worker.outbox import enqueue, enqueue_many
from worker.queue import Queue
from worker.settings import load_settings

A_TRANSACTION = 20
"""Orders placed in one."""
CANCELLED, CLICKED_TWICE = 0.1, 0.1
"""Shares of the orders."""
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Means:
    """The three ways to enqueue."""

    engine: AsyncEngine
    redis: ArqRedis
    """arq's own client, with its stock `enqueue_job`."""
    queue: Queue
    dice: random.Random
    enqueued: Counter[str]


async def produce(orders: int) -> dict[str, int]:
    """Place `orders` orders, and pay or cancel each as it appears. Returns the messages enqueued, by job."""
    settings = load_settings()
    engine = create_engine(settings.database_url.get_secret_value(), pool_size=3, application="ratchet demo")
    redis = connect_broker(settings.redis_url.get_secret_value())
    means = Means(engine, redis, Queue(redis), random.Random(SEED), Counter())  # noqa: S311 - reproducible, not secret
    try:
        async with AsyncSession(engine) as session:
            emails = (await session.scalars(select(User.email).order_by(User.id).limit(1_000))).all()
        async with asyncio.TaskGroup() as group:
            group.create_task(_place(means, emails, assortment(orders), orders))
            group.create_task(_pay_and_cancel(means, orders))
    finally:
        await redis.aclose()
        await engine.dispose()
    return dict(means.enqueued)


async def _place(means: Means, emails: Sequence[str], articles: Sequence[Article], orders: int) -> None:
    """By turns: in transactions, of which some are rolled back; straight to Redis; through stock arq."""
    for first in range(0, orders, A_TRANSACTION):
        batch = [
            _order(means.dice, f"DEMO-{n:06}", emails, articles)
            for n in range(first, min(orders, first + A_TRANSACTION))
        ]
        match first // A_TRANSACTION % 5:
            case 0:
                await means.queue.enqueue_many(batch)
            case 1:
                for job in batch:
                    await means.redis.enqueue_job(job.job_name, **job.model_dump(mode="json"))
            case _:
                async with AsyncSession(means.engine) as session, session.begin():
                    enqueue_many(session, batch)
                async with AsyncSession(means.engine) as session:
                    enqueue_many(session, [_order(means.dice, f"{NEVER}-{first:06}", emails, articles)])
                    await session.flush()
                    await session.rollback()
        means.enqueued[PlaceOrder.job_name] += len(batch)


def _order(dice: random.Random, reference: str, emails: Sequence[str], articles: Sequence[Article]) -> PlaceOrder:
    chosen = dice.sample(articles, k=dice.choice((1, 1, 2, 3)))
    return PlaceOrder(
        reference=reference, email=dice.choice(emails), lines=[(article.sku, dice.randint(1, 3)) for article in chosen]
    )


async def _pay_and_cancel(means: Means, orders: int) -> None:
    """Nine of ten are paid (and shipped by the job that follows), one is cancelled; some clicks come twice."""
    seen = 0
    again: list[int] = []
    while True:
        async with AsyncSession(means.engine) as session, session.begin():
            placed = select(func.count()).where(Run.name == PlaceOrder.job_name, Run.finished_at.is_not(None))
            all_placed = (await session.execute(placed)).scalar_one() >= orders
            new = select(Order.id).where(Order.reference.startswith("DEMO-"), Order.id > seen).order_by(Order.id)
            ids = (await session.scalars(new)).all()
            # Whoever clicked twice did so a moment apart.
            for order_id in again:
                _pay(means, session, order_id, f"pay-{order_id}")
            again = [order_id for order_id in ids if _decide(means, session, order_id)]
        if not ids and not again and all_placed:
            return
        seen = max(ids, default=seen)
        await asyncio.sleep(LOOK_EVERY_S)


def _decide(means: Means, session: AsyncSession, order_id: int) -> bool:
    """Cancel or pay it. True: this one will be clicked again."""
    fate = means.dice.random()
    if fate < CANCELLED:
        enqueue(session, CancelOrder(order_id=order_id, reason="changed their mind"))
        means.enqueued[CancelOrder.job_name] += 1
        return False
    clicked_again = fate < CANCELLED + CLICKED_TWICE
    _pay(means, session, order_id, f"pay-{order_id}" if clicked_again else None)
    return clicked_again


def _pay(means: Means, session: AsyncSession, order_id: int, job_id: str | None) -> None:
    """With an idempotency key of the caller's it is paid once, however often it is clicked."""
    enqueue(session, PayOrder(order_id=order_id), job_id=job_id)
    means.enqueued[PayOrder.job_name] += 1


def main() -> None:
    """`python -m jobs.demo.producer --orders N`, with DATABASE_URL and REDIS_URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, required=True)
    json.dump(asyncio.run(produce(parser.parse_args().orders)), sys.stdout)


if __name__ == "__main__":
    main()
