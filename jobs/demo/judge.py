"""What must hold when all is done, read from PostgreSQL and Redis alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arq.connections import ArqRedis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from jobs.demo.shop import Article
from worker.job import DEFAULT_QUEUE


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant."""

    claim: str
    holds: bool
    shown: str
    """The figures that it was told from."""


@dataclass(frozen=True, slots=True)
class JobFigures:
    """One line of the table."""

    name: str
    runs: int
    done: int
    dead: int
    p50_ms: float | None
    p95_ms: float | None


_FIGURES = text("""
select name, count(*) as runs, count(*) filter (where status = 'completed') as done,
    count(*) filter (where status = 'dead') as dead,
    1000 * percentile_cont(0.5) within group (order by took) as p50_ms,
    1000 * percentile_cont(0.95) within group (order by took) as p95_ms
from (
    select name, status,
        case when enqueued_ms > 0 then extract(epoch from finished_at - to_timestamp(enqueued_ms / 1000.0)) end as took
    from worker.run
) as runs group by name order by name
""")

_PAID_TWICE = """
select count(*) from (
    select from worker.run where name = 'orders.pay' and status = 'completed'
    group by result->>'order_id' having count(*) > 1
) as twice
"""
_PAID = "select count(*) from orders where reference like 'DEMO-%' and paid_at is not null"
_PAY_RUNS = "select count(*) from worker.run where name = 'orders.pay' and status = 'completed'"
_PLACED = "select count(*) from orders where reference like 'DEMO-%'"
_SETTLED = "select count(*) from worker.run where name = 'orders.place' and finished_at is not null"
_PLACE_DEAD = "select count(*) from worker.run where name = 'orders.place' and status = 'dead'"
_ROLLED_BACK = "select count(*) from orders where reference like 'NEVER-%'"
_NEGATIVE = "select count(*) from products where stock < 0"
_STOCK = """
select p.sku, p.stock, coalesce(sum(l.quantity) filter (where o.status <> 'cancelled'), 0) as sold
from products as p left join order_lines as l on l.sku = p.sku
    left join orders as o on o.id = l.order_id and o.reference like 'DEMO-%'
where p.stock is not null group by p.sku, p.stock
"""
_OUTBOX = "select count(*) from worker.outbox"
_UNFINISHED = "select count(*) from worker.run where finished_at is null"


async def figures(engine: AsyncEngine) -> list[JobFigures]:
    """By job."""
    async with engine.connect() as connection:
        return [JobFigures(*row) for row in await connection.execute(_FIGURES)]


async def unfinished(engine: AsyncEngine, redis: ArqRedis) -> int:
    """Rows of the outbox, open runs, and jobs in Redis."""
    queued: int = await redis.zcard(DEFAULT_QUEUE)
    async with engine.connect() as connection:
        return await _count(connection, _OUTBOX) + await _count(connection, _UNFINISHED) + queued


async def judge(engine: AsyncEngine, redis: ArqRedis, articles: Sequence[Article], orders: int) -> list[Verdict]:
    """Every invariant of the shop and of the queue."""
    async with engine.connect() as connection:
        paid, pay_runs, twice = [await _count(connection, query) for query in (_PAID, _PAY_RUNS, _PAID_TWICE)]
        placed, place_dead = await _count(connection, _PLACED), await _count(connection, _PLACE_DEAD)
        rolled_back, negative = await _count(connection, _ROLLED_BACK), await _count(connection, _NEGATIVE)
        left = {row.sku: (row.stock, row.sold) for row in await connection.execute(text(_STOCK))}
        outbox, open_runs = await _count(connection, _OUTBOX), await _count(connection, _UNFINISHED)
    wrong = [article.sku for article in articles if left[article.sku][0] != article.stock - left[article.sku][1]]
    queued = await redis.zcard(DEFAULT_QUEUE)
    return [
        Verdict(
            "every order placed once",
            placed + place_dead == orders,
            f"{placed:,} placed + {place_dead:,} refused = {orders:,} sent",
        ),
        Verdict(
            "every order paid once",
            paid == pay_runs and twice == 0,
            f"{paid:,} orders paid by {pay_runs:,} runs, {twice} twice",
        ),
        Verdict("nothing of a rolled-back transaction", rolled_back == 0, f"{rolled_back} orders"),
        Verdict("stock = start - sold + given back", not wrong, f"{len(articles)} articles, {len(wrong)} wrong"),
        Verdict("stock never negative", negative == 0, f"{negative} articles"),
        Verdict("nothing left in the outbox or the queue", outbox + queued == 0, f"{outbox} rows, {queued} messages"),
        Verdict("no unfinished run", open_runs == 0, f"{open_runs} runs"),
    ]


async def settled(engine: AsyncEngine) -> int:
    """Orders placed or refused so far."""
    async with engine.connect() as connection:
        return await _count(connection, _SETTLED)


async def are_final(engine: AsyncEngine, ids: Iterable[str]) -> bool:
    """Whether all these jobs have ended."""
    wanted = list(ids)
    query = text("select count(distinct id) from worker.run where id = any(:ids) and finished_at is not null")
    async with engine.connect() as connection:
        return bool((await connection.execute(query, {"ids": wanted})).scalar_one() == len(wanted))


async def judge_import(engine: AsyncEngine, orders: int, cents: int) -> Verdict:
    """Whether the orders of the file are there, to the cent."""
    async with engine.connect() as connection:
        there, total = (
            await connection.execute(
                text("select count(*), coalesce(sum(total_cents), 0) from orders where reference not like 'DEMO-%'")
            )
        ).one()
    holds = there == orders and total == cents
    return Verdict(
        "every imported order there, to the cent",
        holds,
        f"{there:,} of {orders:,} orders, {total:,} of {cents:,} cents",
    )


async def _count(connection: AsyncConnection, query: str) -> int:
    count: int = (await connection.execute(text(query))).scalar_one()
    return count
