"""The judge sees what it is there for: each way to be wrong turns the verdict red."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.judge import RULES, judge, lost_direct

SCRIPT = Path(__file__).with_name("shop.sql").read_text()
GOOD = """
insert into users (email, name) values ('a@shop.example', 'Ada');
insert into products (sku, name, price_cents, stock) values ('sku-1', 'Ware', 100, 7);
insert into chaos.shelf values ('sku-1', 10);
insert into orders (id, reference, user_id, status, total_cents, paid_at, shipped_at)
    select 1, 'sql-1', id, 'shipped', 300, now(), now() from users;
insert into order_lines values (1, 1, 'sku-1', 3, 300);
insert into chaos.wanted (name, subject, how, expect) values
    ('orders.place', 'sql-1', 'sql', 'done'), ('orders.pay', 'sql-1', 'handler', 'done'),
    ('orders.place', 'direct-2', 'direct', 'done'),
    ('orders.place', 'sql-3', 'sql', 'refused'), ('orders.place', 'sql-4', 'sql', 'either');
insert into chaos.effect (name, subject, job_id) values
    ('orders.place', 'sql-1', 'a'), ('orders.pay', 'sql-1', 'b'), ('orders.place', 'sql-4', 'd');
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, message, error, finished_at) values
    ('a', 1, 'orders.place', 'arq:queue', 'completed', true, null, null, now()),
    ('c', 1, 'orders.place', 'arq:queue', 'dead', true, '{"k":{"reference":"sql-3"}}', 'UnknownSku: no such', now())
"""
RUN = (
    "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, message, error, finished_at) values "
    "('x', 1, 'orders.place', 'arq:queue', {})"
)
BAD = {
    "doubled": ("insert into chaos.effect (name, subject, job_id) values ('orders.pay', 'sql-1', 'b')", "exactly once"),
    "lost": ("delete from chaos.effect where name = 'orders.pay'", "exactly once"),
    "rolled back": (
        "insert into chaos.effect (name, subject, job_id) values ('orders.place', 'never-1', 'n')",
        "rolled back",
    ),
    "of no order": ("insert into chaos.effect (name, subject, job_id) select 'orders.ship', '?', 'n'", "rolled back"),
    "direct twice": (
        """insert into chaos.effect (name, subject, job_id) values
        ('orders.place', 'direct-2', 'n'), ('orders.place', 'direct-2', 'n')""",
        "at most once",
    ),
    "refused and applied": (
        "insert into chaos.effect (name, subject, job_id) values ('orders.place', 'sql-3', 'c')",
        "refused",
    ),
    "neither refused nor applied": ("delete from chaos.effect where subject = 'sql-4'", "refused"),
    "stock": ("update products set stock = 8", "stock"),
    "unshipped": ("update orders set status = 'paid'", "shipped"),
    "open run": (RUN.format("'retrying', true, null, null, null"), "run is left open"),
    "outbox row": (
        "insert into worker.outbox (id, enqueued_ms, name, queue, message) values ('x', 1, 'n', 'q', 'm')",
        "outbox",
    ),
    "dead": (RUN.format("""'dead', true, '{"k":{"reference":"sql-1"}}', 'OutOfStock: so', now()"""), "dead"),
    "dead of a fault": (RUN.format("""'dead', true, '{"k":{"reference":"sql-3"}}', 'TypeError: so', now()"""), "dead"),
}


@pytest.fixture
async def shop(database_url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A shop in which all went well, but for one direct job that was lost."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(SCRIPT)
    await connection.execute(GOOD)
    yield connection
    await connection.close()


async def test_a_good_run_is_green(shop: "asyncpg.Connection[asyncpg.Record]") -> None:
    assert [verdict for verdict in await judge(shop) if not verdict.holds] == []
    assert await lost_direct(shop) == 1


@pytest.mark.parametrize("wrong", BAD)
async def test_what_is_wrong_turns_it_red(shop: "asyncpg.Connection[asyncpg.Record]", wrong: str) -> None:
    statement, claim = BAD[wrong]
    await shop.execute(statement)
    red = [verdict.claim for verdict in await judge(shop) if not verdict.holds]
    assert [one for one in red if claim in one]


def test_each_rule_has_something_that_breaks_it() -> None:
    unproved = [rule.claim for rule in RULES if not any(claim in rule.claim for _, claim in BAD.values())]
    assert unproved == []
