"""The judge: what must hold when all is done. It reads nothing but PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

Driver = "asyncpg.Connection[asyncpg.Record]"
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant."""

    claim: str
    holds: bool
    shown: str
    """The figures that it was told from."""


# What was wanted and what came of it, where they may differ. `n` is how often.
_TALLY = """
create temporary view tally as
select name, subject, coalesce(w.n, 0) as wanted, coalesce(e.n, 0) as applied, how, expect,
    d.error as dead
from (select name, subject, count(*) as n, min(how) as how, min(expect) as expect from chaos.wanted group by 1, 2) as w
    full join (select name, coalesce(subject, '?') as subject, count(*) as n from chaos.effect group by 1, 2) as e
        using (name, subject)
    left join (
        select name, convert_from(message, 'UTF8')::jsonb #>> '{k,reference}' as subject, min(error) as error
        from worker.run where status = 'dead' and name = 'orders.place' group by 1, 2
    ) as d using (name, subject)
"""

_REFUSED = "(dead like 'UnknownSku:%' or dead like 'OutOfStock:%')"


@dataclass(frozen=True, slots=True)
class Rule:
    """A claim, and a query for whatever breaks it: one text a row."""

    claim: str
    breaks: str
    counts: str
    """How much there was to look at."""


RULES: tuple[Rule, ...] = (
    Rule(
        "each committed enqueue was applied exactly once",
        "select name || ' ' || subject || ': ' || applied || ' times' from tally "
        "where wanted > 0 and how <> 'direct' and expect = 'done' and applied <> wanted",
        "select count(*) from tally where wanted > 0 and how <> 'direct' and expect = 'done'",
    ),
    Rule(
        "what the shop's rules refuse was refused once and for all",
        f"select subject || ': ' || applied || ' times, ' || coalesce(dead, 'not dead') from tally "
        f"where expect = 'refused' and how <> 'direct' and not (applied = 0 and {_REFUSED} is true) or "
        f"expect = 'refused' and how = 'direct' and applied > 0 or "
        f"expect = 'either' and how <> 'direct' and applied + ({_REFUSED} is true)::int <> 1",
        "select count(*) from tally where expect <> 'done'",
    ),
    Rule(
        "nothing that was rolled back was applied",
        "select name || ' ' || subject from tally where wanted = 0",
        "select count(*) from chaos.effect",
    ),
    Rule(
        "a job that was sent straight to Redis was applied at most once",
        "select subject || ': ' || applied || ' times' from tally where how = 'direct' and applied > 1",
        "select count(*) from tally where how = 'direct'",
    ),
    Rule(
        "no product has more or less stock than was sold",
        """select sku || ': ' || products.stock || ' left of ' || shelf.stock || ', ' || coalesce(sold, 0) || ' sold'
        from products join chaos.shelf using (sku) left join (
            select sku, sum(quantity) as sold from order_lines join orders on orders.id = order_id
            where status <> 'cancelled' group by sku
        ) as lines using (sku) where products.stock <> shelf.stock - coalesce(sold, 0)""",
        "select count(*) from products",
    ),
    Rule(
        "each order that was placed is shipped",
        "select reference || ' is ' || status from orders where status <> 'shipped'",
        "select count(*) from orders",
    ),
    Rule(
        "no run is left open",
        "select name || ' ' || id || ' is ' || status from worker.run where finished_at is null",
        "select count(*) from worker.run",
    ),
    Rule(
        "the outbox is empty",
        "select name || ' ' || id from worker.outbox",
        "select count(*) from worker.outbox",
    ),
    Rule(
        "nothing is dead but what the shop's rules explain",
        """select run.name || ' ' || run.id || ': ' || run.error from worker.run as run where status = 'dead' and not (
            run.name = 'orders.place' and (run.error like 'UnknownSku:%' or run.error like 'OutOfStock:%')
            and exists (select from tally where tally.name = run.name and tally.expect <> 'done'
                and tally.subject = convert_from(run.message, 'UTF8')::jsonb #>> '{k,reference}'))""",
        "select count(*) from worker.run where status = 'dead'",
    ),
)

_LOST = "select count(*) from tally where how = 'direct' and applied = 0 and dead is null"


async def judge(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Verdict]:
    """Every claim, with examples of what breaks it."""
    await connection.execute("drop view if exists tally")
    await connection.execute(_TALLY)
    return [await _apply(connection, rule) for rule in RULES]


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", rule: Rule) -> Verdict:
    broken = [str(row[0]) for row in await connection.fetch(rule.breaks)]
    looked_at: int = await connection.fetchval(rule.counts)
    return Verdict(rule.claim, not broken, shown(broken) or f"{looked_at:,}")


async def lost_direct(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Jobs that were sent straight to Redis and were never applied. After `judge`."""
    lost: int = await connection.fetchval(_LOST)
    return lost


def shown(broken: Sequence[str]) -> str:
    """The first few, and how many there are."""
    more = f" and {len(broken) - EXAMPLES:,} more" if len(broken) > EXAMPLES else ""
    return "; ".join(broken[:EXAMPLES]) + more
