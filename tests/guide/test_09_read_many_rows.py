"""Read many rows: through a cursor into a handler, or as PostgreSQL writes them into a file."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.models import User
from tests.guide.steps import add_user, commit
from worker.app import App
from worker.bulk import copy_csv, stream
from worker.handler import Handler
from worker.job import Job
from worker.outcome import Completed
from worker.testing import drain
from worker.whole import in_threads, written_whole


class CountDomains(Job, name="users.count_domains"):
    """How many users each mail domain has."""


class WriteAddresses(Job, name="users.write_addresses"):
    """A list of all addresses."""

    path: Path


async def count_domains(job: CountDomains, session: AsyncSession) -> dict[str, int]:
    domains: dict[str, int] = {}
    async for users in stream(session, select(User.id, User.email).order_by(User.id)):
        for user in users:
            domain = user.email.partition("@")[2]
            domains[domain] = domains.get(domain, 0) + 1
    return domains


async def write_addresses(job: WriteAddresses, session: AsyncSession) -> int:
    async with in_threads(written_whole(job.path)) as file:
        return await copy_csv(session, select(User.id, User.email).order_by(User.id), file.write)


app = App(handlers=[Handler(CountDomains, count_domains), Handler(WriteAddresses, write_addresses)])


async def test_rows_are_streamed_to_a_handler(engine: AsyncEngine) -> None:
    for number in range(3):
        await add_user(engine, f"user{number}@example.com")
    await commit(engine, CountDomains())
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed({"example.com": 3})


async def test_postgresql_writes_a_file(engine: AsyncEngine, tmp_path: Path) -> None:
    first = await add_user(engine)
    await commit(engine, WriteAddresses(path=tmp_path / "addresses.csv"))
    [(_, outcome)] = await drain(app, engine)
    assert outcome == Completed(1)
    assert (tmp_path / "addresses.csv").read_text() == f"id,email\n{first},ada@example.com\n"
