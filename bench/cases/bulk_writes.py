"""Writing many rows: COPY, upsert from a file by a running worker, and an update with a value a row."""

import asyncio
import csv
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from bench.blocks import Measure
from bench.case import Bench
from bench.results import CaseResult, Comparison, Run, Target, figures, ratio
from bench.shop import importing, open_shop
from jobs.users.models import User
from worker.bulk import copy_rows, update_many
from worker.database import create_engine
from worker.garbage import settle_heap

SHARE = 10
"""Rows for each of the bench's jobs: 100,000."""
OURS, IMPORT, PSQL = "worker.bulk", "users.import", r"psql \copy"
INSERT_LIST, ADD_ALL, RECORDS = "session.execute(insert, list)", "add_all", "asyncpg copy_records"
UPDATE_ONE, BY_KEY, UNNEST, STAGED = "one UPDATE … WHERE", "ORM by key", "unnest", "staged COPY"

Work = Callable[[AsyncSession], Awaitable[object]]


def email(n: int) -> str:
    return f"user{n}@example.org"


def run(bench: Bench, result: CaseResult) -> None:
    rows = [(email(n), f"User Number {n}") for n in range(bench.jobs * SHARE)]
    with open_shop(bench.servers) as folder:
        path = folder / "users.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(("email", "name"))
            out.writerows(rows)
        written = bench.contest(OURS, writers(bench, path, rows))
        updated = bench.contest(OURS, updaters(bench, len(rows)))
    result.figures = figures(written, "written", "rows/s") + figures(updated, "updated", "rows/s")
    result.comparisons = [
        Comparison(f"copy_rows ÷ {PSQL}", ratio(written, OURS, PSQL), Target(at_least=0.65)),
        Comparison(f"{IMPORT} ÷ {PSQL}", ratio(written, IMPORT, PSQL), Target(at_least=0.3)),
        Comparison(f"{IMPORT} ÷ {INSERT_LIST}", ratio(written, IMPORT, INSERT_LIST), Target(at_least=1.5)),
        Comparison(f"update_many ÷ {UPDATE_ONE}", ratio(updated, OURS, UPDATE_ONE), Target(at_least=0.8)),
        Comparison(f"update_many ÷ {BY_KEY}", ratio(updated, OURS, BY_KEY), Target(at_least=4)),
    ]
    result.notes.append(
        f"{len(rows):,} users, with the shop's index over lower(email). {IMPORT}: a running worker, from the commit "
        "that enqueues to the one that completes; every row is validated and upserted."
    )


def writers(bench: Bench, path: Path, rows: Sequence[tuple[str, str]]) -> dict[str, Measure]:
    """Each fills an empty table."""
    url, dicts = bench.servers.database_url, [{"email": email, "name": name} for email, name in rows]

    async def records(session: AsyncSession) -> None:
        driver = await _driver(session)
        await driver.copy_records_to_table("users", records=rows, columns=["email", "name"])

    async def add_all(session: AsyncSession) -> None:
        session.add_all([User(**fields) for fields in dicts])
        await session.flush()

    def measured(work: Callable[[], float]) -> Measure:
        def measure() -> Run:
            bench.servers.value("truncate users cascade")
            bench.servers.value("checkpoint")
            seconds = work()
            right = bench.servers.value(
                "select count(*) from users join generate_series(0, $1::int - 1) n "
                "on email = 'user' || n || '@example.org' and name = 'User Number ' || n",
                given=(len(rows),),
            )
            all_rows = bench.servers.value("select count(*) from users")
            spoilt = "" if right == all_rows == len(rows) else f"{right:,} of {all_rows:,} rows are right"
            return Run(len(rows) / seconds, spoilt)

        return measure

    def psql() -> float:
        began = time.monotonic()
        bench.servers.psql(f"\\copy users (email, name) from '{path}' csv header")
        return time.monotonic() - began

    return {
        OURS: measured(lambda: timed(url, lambda session: copy_rows(session, User, [User.email, User.name], rows))),
        PSQL: measured(psql),
        IMPORT: measured(lambda: importing(bench.servers, path.name)),
        INSERT_LIST: measured(lambda: timed(url, lambda session: session.execute(insert(User), dicts))),
        RECORDS: measured(lambda: timed(url, records)),
        ADD_ALL: measured(lambda: timed(url, add_all)),
    }


def updaters(bench: Bench, count: int) -> dict[str, Measure]:
    """Each gives every user a name of its own; but one UPDATE, which takes them all by a condition."""
    url, ids = bench.servers.database_url, range(1, count + 1)
    names = [f"New name {user_id}" for user_id in ids]

    async def ours(session: AsyncSession) -> None:
        await update_many(session, User, [User.id, User.name], zip(ids, names, strict=True))

    async def one(session: AsyncSession) -> None:
        driver = await _driver(session)
        await driver.execute("update users set name = 'New name ' || id where id <= $1", count)

    async def unnest(session: AsyncSession) -> None:
        driver = await _driver(session)
        await driver.execute(
            "update users set name = given.name from unnest($1::bigint[], $2::text[]) as given (id, name) "
            "where users.id = given.id",
            ids,
            names,
        )

    async def staged(session: AsyncSession) -> None:
        driver = await _driver(session)
        await driver.execute("create temporary table given (id bigint, name text) on commit drop")
        await driver.copy_records_to_table("given", records=zip(ids, names, strict=True))
        await driver.execute("update users set name = given.name from given where users.id = given.id")

    async def by_key(session: AsyncSession) -> None:
        rows = [{"id": user_id, "name": name} for user_id, name in zip(ids, names, strict=True)]
        await session.execute(update(User), rows)

    def measured(work: Work) -> Measure:
        def measure() -> Run:
            bench.servers.value("truncate users restart identity cascade")
            bench.servers.value(
                "insert into users (email, name) select 'user' || n || '@example.org', 'Old' "
                "from generate_series(1, $1::int) n",
                given=(count,),
            )
            bench.servers.value("vacuum analyze users")
            bench.servers.value("checkpoint")
            seconds = timed(url, work)
            right = bench.servers.value("select count(*) from users where name = 'New name ' || id")
            return Run(count / seconds, "" if right == count else f"{right:,} of {count:,} rows are right")

        return measure

    return {
        name: measured(work)
        for name, work in (
            (OURS, ours), (UPDATE_ONE, one), (UNNEST, unnest), (STAGED, staged), (BY_KEY, by_key),
        )
    }  # fmt: skip


def timed(url: str, work: Work) -> float:
    """Seconds that `work` takes in a session, with its commit; the connection was there before.

    The garbage collector is set as a worker sets it, whoever works.
    """

    async def measure() -> float:
        async with _session(url) as session:
            settle_heap()
            began = time.monotonic()
            await work(session)
            await session.commit()
            return time.monotonic() - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measure())


@asynccontextmanager
async def _session(url: str) -> AsyncGenerator[AsyncSession]:
    engine = create_engine(url, pool_size=1)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        await session.scalar(select(1))
        yield session
    await engine.dispose()


async def _driver(session: AsyncSession) -> "asyncpg.Connection[asyncpg.Record]":
    """The driver's connection, in a transaction."""
    connection = await session.connection()
    await connection.exec_driver_sql("select 1")
    driver: Any = (await connection.get_raw_connection()).driver_connection
    found: asyncpg.Connection[asyncpg.Record] = driver
    return found
