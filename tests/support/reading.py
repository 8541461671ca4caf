"""How much of the database the runtime's statements read: each is sent again, explained, and undone."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine


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
    blocks = 0
    async with engine.connect() as connection:
        for statement, parameters in sent:
            explain = f"explain (analyze, buffers, timing off, format json) {statement}"
            found = (await connection.exec_driver_sql(explain, parameters)).scalar_one()
            [top] = json.loads(found) if isinstance(found, str) else found
            blocks += top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"]
        await connection.rollback()
    return blocks
