"""How much of the database the runtime's statements read: each is sent again, explained, and undone."""

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

Plan: TypeAlias = dict[str, Any]
"""A node of a plan, as explain tells it."""


class Sent(NamedTuple):
    """A statement as the driver was given it."""

    statement: str
    parameters: Any


@contextmanager
def noted(engine: AsyncEngine) -> Generator[list[Sent]]:
    """What is sent through SQLAlchemy within it, in its order."""
    sent: list[Sent] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, is_many: bool) -> None:  # noqa: FBT001 - SQLAlchemy calls it
        sent.extend(Sent(statement, each) for each in (parameters if is_many else [parameters]))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def blocks_read(engine: AsyncEngine, *sent: Sent) -> int:
    """How many blocks these read, one after another, in a transaction that is rolled back; one read twice counts twice.

    Settings among them hold for those that come after.
    """
    plans = await _plans(engine, sent)
    return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)


async def rows_read(engine: AsyncEngine, *sent: Sent) -> int:
    """How many rows of tables and entries of indexes these go through, in the same way."""
    return round(sum(map(_rows_of, await _plans(engine, sent))))


async def _plans(engine: AsyncEngine, sent: Iterable[Sent]) -> list[Plan]:
    plans: list[Plan] = []
    async with engine.connect() as connection:
        for statement, parameters in sent:
            explain = f"explain (analyze, buffers, timing off, format json) {statement}"
            found = (await connection.exec_driver_sql(explain, parameters)).scalar_one()
            [top] = json.loads(found) if isinstance(found, str) else found
            plans.append(top["Plan"])
        await connection.rollback()
    return plans


def _rows_of(plan: Plan) -> float:
    rows: float = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0) if "Scan" in plan["Node Type"] else 0
    loops: int = plan["Actual Loops"]
    return loops * rows + sum(map(_rows_of, plan.get("Plans", ())))
