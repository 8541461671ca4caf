"""The producers: orders placed in every way that a job can be enqueued, and as many that are rolled back.

A row of `chaos.wanted` commits or rolls back with each job, so what was asked for stands in PostgreSQL alone: also
where a producer never heard whether its commit came through.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import asyncpg
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.orders.contracts import PlaceOrder
from tests.chaos.app import Count, Wrap
from tests.chaos.stage import SCARCE, SKUS, USERS, Secrets
from worker.broker import connect_broker
from worker.database import DatabaseAway
from worker.outbox import enqueue
from worker.queue import Queue

PRODUCERS = 4
BEFORE_ANOTHER_TRY_S = 0.2
BESIDE, COUNTS, CHUNKS = 0.1, 0.05, 30
"""How often another job comes with an order, how often a chunked one with that, and its chunks."""
TROUBLE = (DBAPIError, DatabaseAway, RedisError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
ANSWER_WITHIN_S = 10

_WANTED = text("insert into chaos.wanted (name, subject, how, expect) values (:name, :subject, :how, :expect)")
_BY_SQL = text("select worker.enqueue('orders.place', cast(:payload as jsonb))")


@dataclass(slots=True)
class Means:
    """What the producers of one run share."""

    engine: AsyncEngine
    redis_url: str
    secrets: Secrets
    enqueued: Counter[str] = field(default_factory=Counter[str])
    """What is known to have been asked for, by the way it was."""
    numbers: int = 0

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers


async def produce(means: Means, seed: int, orders: int, seconds: float, *, most_s: float) -> None:
    """Place `orders` orders, evenly over `seconds`; those that weren't placed after `most_s` stay away."""
    began = asyncio.get_running_loop().time()
    due = iter([began + seconds * number / orders for number in range(orders)])
    redis = connect_broker(means.redis_url)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(PRODUCERS):
                dice = random.Random(f"producer {seed} {number}")
                group.create_task(_Producer(means, Queue(redis), dice).run(due, began + most_s))
    finally:
        await redis.aclose()


class _Producer:
    def __init__(self, means: Means, queue: Queue, dice: random.Random) -> None:
        self._means = means
        self._queue = queue
        self._dice = dice

    async def run(self, due: Iterator[float], until: float) -> None:
        ways: dict[str, Callable[[PlaceOrder], Awaitable[None]]] = {
            "transaction": self._in_transaction, "sql": self._by_sql, "direct": self._direct, "twice": self._twice,
        }  # fmt: skip
        loop = asyncio.get_running_loop()
        for at in due:
            await asyncio.sleep(max(0.0, at - loop.time()))
            while loop.time() < until:
                [how] = self._dice.choices(list(ways), weights=(5, 3, 2, 1))
                number = self._means.next_number()
                try:
                    async with asyncio.timeout(ANSWER_WITHIN_S):
                        await self._roll_back(self._order(f"never-{number}"))
                        await ways[how](self._order(f"{how}-{number}"))
                        if self._dice.random() < BESIDE:
                            await self._beside(number)
                except TROUBLE:
                    self._means.enqueued["not known"] += 1
                    await asyncio.sleep(BEFORE_ANOTHER_TRY_S)
                else:
                    self._means.enqueued[how] += 1
                    break

    def _order(self, reference: str) -> PlaceOrder:
        skus = self._dice.sample(range(SKUS), k=self._dice.choice((1, 1, 2, 3)))
        lines = [(f"sku-{sku}", self._dice.randint(1, 3)) for sku in skus]
        if self._dice.random() < 0.01:
            lines.append((SCARCE, 1))
        elif self._dice.random() < 0.01:
            lines.append(("unheard of", 1))
        email = f"{self._means.secrets.token}-{self._dice.randrange(USERS)}@shop.example"
        return PlaceOrder(reference=reference, email=email, lines=lines)

    async def _in_transaction(self, job: PlaceOrder) -> None:
        async with AsyncSession(self._means.engine) as session, session.begin():
            await self._want(session, job, "transaction")
            enqueue(session, job)

    async def _by_sql(self, job: PlaceOrder) -> None:
        async with AsyncSession(self._means.engine) as session, session.begin():
            await self._want(session, job, "sql")
            await session.execute(_BY_SQL, {"payload": json.dumps(job.model_dump(mode="json"))})

    async def _direct(self, job: PlaceOrder) -> None:
        """At most once: what is wanted is noted first, and what Redis is asked for may be lost."""
        async with AsyncSession(self._means.engine) as session, session.begin():
            await self._want(session, job, "direct")
        await self._queue.enqueue(job)

    async def _twice(self, job: PlaceOrder) -> None:
        """Somebody clicks again; the second click is a duplicate."""
        async with AsyncSession(self._means.engine) as session, session.begin():
            await self._want(session, job, "twice")
            enqueue(session, job, job_id=job.reference)
        async with AsyncSession(self._means.engine) as session, session.begin():
            enqueue(session, job, job_id=job.reference)

    async def _roll_back(self, job: PlaceOrder) -> None:
        """By an error in the transaction or by decision; in SQL or in Python."""
        async with AsyncSession(self._means.engine) as session:
            await self._want(session, job, "transaction")
            if self._dice.random() < 0.5:
                await session.execute(_BY_SQL, {"payload": json.dumps(job.model_dump(mode="json"))})
            else:
                enqueue(session, job)
                await session.flush()
            await session.rollback()
        self._means.enqueued["rolled back"] += 1

    async def _beside(self, number: int) -> None:
        """Now and then something else than an order."""
        async with AsyncSession(self._means.engine) as session, session.begin():
            wanted = {"name": Wrap.job_name, "subject": f"wrap-{number}", "how": "transaction", "expect": "done"}
            await session.execute(_WANTED, wanted)
            enqueue(session, Wrap(number=number, token=self._means.secrets.token))
            if self._dice.random() < COUNTS:
                await session.execute(
                    _WANTED,
                    [
                        {"name": Count.job_name, "subject": f"count-{number}-{at}", "how": "chunks", "expect": "done"}
                        for at in range(1, CHUNKS + 1)
                    ],
                )
                enqueue(session, Count(number=number, upto=CHUNKS))

    async def _want(self, session: AsyncSession, job: PlaceOrder, how: str) -> None:
        skus = {sku for sku, _ in job.lines}
        expect = "refused" if "unheard of" in skus else "either" if SCARCE in skus else "done"
        wanted = {"name": PlaceOrder.job_name, "subject": job.reference, "how": how, "expect": expect}
        await session.execute(_WANTED, wanted)
