"""What a customer sees while every order is updated: the time of `orders.pay`, alone and beside the bulk update."""

import random
import time
from collections.abc import Iterator
from statistics import quantiles

from bench.case import Bench
from bench.results import CaseResult, Comparison, Run, Target, figures, ratio, tails
from bench.shop import FINAL, STATUS, enqueue, open_shop, wait_for

SHARE = 4
"""Orders for each of the bench's jobs: 40,000."""
PAID = 150
ALONE, BESIDE = "orders.pay alone", "beside a bulk update of every order"


def run(bench: Bench, result: CaseResult) -> None:
    orders = bench.jobs * SHARE
    servers = bench.servers
    with open_shop(servers):
        servers.value("insert into users (email, name) values ('ada@example.com', 'Ada')")
        servers.value(
            "insert into orders (reference, user_id, total_cents) "
            "select 'R-' || n, (select min(id) from users), 100 from generate_series(1, $1::int) n",
            given=(orders,),
        )
        unpaid = iter(random.Random(7).sample(range(1, orders + 1), orders))  # noqa: S311 - a choice, not a secret
        pay(bench, unpaid, 5)
        blocks = bench.contest(ALONE, {ALONE: lambda: alone(bench, unpaid), BESIDE: lambda: beside(bench, unpaid)})
    result.figures = figures(blocks, "p50", "ms") + figures(tails(blocks), "p99", "ms")
    what = f"p99: {BESIDE} ÷ {ALONE}"
    result.comparisons.append(Comparison(what, ratio(tails(blocks), BESIDE, ALONE), Target(at_most=3)))
    result.notes.append(f"{orders:,} orders, {PAID} of them paid one by one in each run, anywhere among them.")


def alone(bench: Bench, unpaid: Iterator[int]) -> Run:
    return judged(pay(bench, unpaid, PAID), "")


def beside(bench: Bench, unpaid: Iterator[int]) -> Run:
    """Bulk updates one after another, for as long as orders are paid."""
    servers = bench.servers
    waits: list[float] = []
    while len(waits) < PAID:
        bulk = enqueue(servers, "bench.annotate")
        while servers.value("select done > 0 from worker.run where id = $1", given=(bulk,)) is not True:
            time.sleep(0.001)
        is_over = False
        while not is_over and len(waits) < PAID:
            found = pay(bench, unpaid, 1)
            is_over = servers.value(STATUS, given=(bulk,)) in FINAL
            waits += [] if is_over else found
        wait_for(servers, bulk)
    missed = servers.value("select count(*) from orders where cancel_reason is distinct from 'seen as ' || id")
    return judged(waits, f"{missed:,} orders were not updated" if missed else "")


def pay(bench: Bench, unpaid: Iterator[int], count: int) -> list[float]:
    """Pay so many orders one by one; how long each took from its enqueueing to its commit (ms)."""
    waits: list[float] = []
    for _ in range(count):
        began = time.monotonic()
        wait_for(bench.servers, enqueue(bench.servers, "orders.pay", order_id=next(unpaid)))
        waits.append((time.monotonic() - began) * 1000)
    return waits


def judged(waits: list[float], spoilt: str) -> Run:
    cuts = quantiles(waits, n=100, method="inclusive")
    return Run(cuts[49], spoilt, cuts[98])
