"""Inside a process of its own: one way to read many users, timed.

    python -P -m bench.reading stream 1000000 postgresql://…
    python -P -m bench.reading export csv /tmp postgresql://…

The garbage collector is set as a worker sets it, whoever reads.

Prints {"seconds": …, "rows": …, "ids": the sum of the ids}.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import uvloop
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.files import Files
from jobs.users.contracts import ExportUsers
from jobs.users.export import export_users
from jobs.users.models import User
from worker.bulk import stream
from worker.database import create_engine
from worker.garbage import settle_heap

SIZE = 1_000
"""Rows a fetch, for all of them."""

USERS = select(User.id, User.email, User.name, User.is_active, User.last_seen_at, User.created_at).order_by(User.id)
ENTITIES = select(User).order_by(User.id)
PLAIN = "select id, email, name, is_active, last_seen_at, created_at from users order by id limit $1"
OPTIONS = {"yield_per": SIZE}


Read: TypeAlias = tuple[int, int]
"""How many rows there were, and the sum of their ids."""


async def cursor(session: AsyncSession, rows: int) -> Read:
    """asyncpg's own, without SQLAlchemy."""
    raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    count = ids = 0
    async with raw.transaction():
        async for row in raw.cursor(PLAIN, rows, prefetch=SIZE):
            count += 1
            ids += row[0]
    return count, ids


async def streamed(session: AsyncSession, rows: int) -> Read:
    count = ids = 0
    async for batch in stream(session, USERS.limit(rows), size=SIZE):
        for row in batch:
            count += 1
            ids += row[0]
    return count, ids


async def core(session: AsyncSession, rows: int) -> Read:
    count = ids = 0
    connection = await session.connection()
    async for batch in (await connection.stream(USERS.limit(rows), execution_options=OPTIONS)).partitions():
        for row in batch:
            count += 1
            ids += row[0]
    return count, ids


async def partitions(session: AsyncSession, rows: int) -> Read:
    count = ids = 0
    async for batch in (await session.stream_scalars(ENTITIES.limit(rows), execution_options=OPTIONS)).partitions():
        for user in batch:
            count += 1
            ids += user.id
    return count, ids


async def one_by_one(session: AsyncSession, rows: int) -> Read:
    count = ids = 0
    async for user in await session.stream_scalars(ENTITIES.limit(rows), execution_options=OPTIONS):
        count += 1
        ids += user.id
    return count, ids


READERS: dict[str, Callable[[AsyncSession, int], Awaitable[Read]]] = {
    "cursor": cursor,
    "stream": streamed,
    "core": core,
    "partitions": partitions,
    "one_by_one": one_by_one,
}


async def read(how: str, rows: int, url: str) -> dict[str, float]:
    engine = create_engine(url, pool_size=1)
    async with AsyncSession(engine) as session:
        await READERS[how](session, 10)  # connects, and compiles what there is to compile
        await session.rollback()
        settle_heap()
        began = perf_counter()
        count, ids = await READERS[how](session, rows)
        seconds = perf_counter() - began
    await engine.dispose()
    return {"seconds": seconds, "rows": count, "ids": ids}


async def export(kind: str, folder: str, url: str) -> dict[str, float]:
    """From the handler's call to the commit; the file is written whole and synced."""
    engine = create_engine(url, pool_size=1)
    job = ExportUsers.model_validate({"path": f"users.{kind}", "format": kind})
    async with AsyncSession(engine) as session:
        await session.execute(select(1))
        settle_heap()
        began = perf_counter()
        done = await export_users(job, session, files=Files(Path(folder)))
        await session.commit()
        seconds = perf_counter() - began
    await engine.dispose()
    return {"seconds": seconds, **done}


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    run = export(*arguments) if what == "export" else read(what, int(arguments[0]), arguments[1])
    print(json.dumps(uvloop.run(run)))
