"""A database, an executor, and deliveries made by hand: what an attempt does, without Redis."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, Literal

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.availability import Availability
from worker.delivery import Delivery, Report
from worker.executor import Executor
from worker.handler import AnyHandler, bind
from worker.job import Job
from worker.outbox import enqueue
from worker.outcome import Outcome
from worker.reporting.observer import Subject
from worker.wire import Message, encode

WORKER = "the bench"
_numbers = count(1)


class Note(Job, name="note"):
    """What most tests run; its handler is the test's own."""

    text: str = ""


class Count(Job, name="count"):
    """For chunked handlers."""

    upto: int = 3


class Base(DeclarativeBase):
    pass


class Taken(Base):
    """A table in which a name stands once."""

    __tablename__ = "taken"
    name: Mapped[str] = mapped_column(primary_key=True)


@dataclass
class Grip:
    """A Hold that a test sets as it likes. As it comes, the lease is ours and nobody wants the job to end."""

    ours: bool = True
    stopping: bool = False
    aborted: bool = False
    begun: list[timedelta] = field(default_factory=list[timedelta])
    shares: bool = False
    tells: bool = False

    async def is_ours(self) -> bool:
        return self.ours

    def begins(self, timeout: timedelta) -> None:
        self.begun.append(timeout)

    def is_stopping(self) -> bool:
        return self.stopping

    def is_aborted(self) -> bool:
        return self.aborted

    def tells_of_stops(self) -> bool:
        return self.tells

    def shares_slot(self) -> None:
        self.shares = True

    def takes_slot(self) -> None:
        self.shares = False


Ending = tuple[Outcome, BaseException | None]


@dataclass
class Told:
    """An observer that remembers."""

    attempts: list[int] = field(default_factory=list[int])
    endings: list[Ending] = field(default_factory=list[Ending])
    faults: list[BaseException] = field(default_factory=list[BaseException])

    @contextmanager
    def observe(self, subject: Subject) -> Generator["Told"]:
        del subject
        yield self

    def begun(self, attempt: int) -> None:
        self.attempts.append(attempt)

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        self.endings.append((outcome, error))

    def fault(self, part: str, error: BaseException) -> None:
        del part
        self.faults.append(error)


class Bench:
    """One worker's side of the ledger. Two of them on one database are two workers."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.told = Told()
        self.availability = Availability(engine)

    async def close(self) -> None:
        """End it. Fails where an attempt has kept a connection."""
        await self.availability.close()
        assert "checked out connections: 0" in self.engine.pool.status().lower()
        await self.engine.dispose()

    def executor(self, *handlers: AnyHandler) -> Executor:
        return Executor(bind(handlers), self.engine, self.told, self.availability, WORKER)

    async def run(self, handler: AnyHandler, delivery: Delivery) -> Outcome:
        """What comes of one delivery."""
        return (await self.report(handler, delivery)).outcome

    async def run_all(self, handler: AnyHandler, deliveries: Iterable[Delivery]) -> list[Outcome]:
        """What comes of several that are there at once, in their order."""
        executor = self.executor(handler)
        reports = await asyncio.gather(*(executor.execute(delivery) for delivery in deliveries))
        return [report.outcome for report in reports]

    async def report(self, handler: AnyHandler, delivery: Delivery) -> Report:
        return await self.executor(handler).execute(delivery)

    async def enqueued(self, job: Job, *, hold: Grip | None = None, job_id: str | None = None) -> Delivery:
        """A delivery from the outbox: the row is committed, and marked as the relay would mark it."""
        async with AsyncSession(self.engine) as session, session.begin():
            chosen = enqueue(session, job, job_id=job_id)
        row = await self.one(
            "update worker.outbox set sent_epoch = 1, sent_at = now() where id = :id returning message", id=chosen
        )
        return self.delivery(row.message, job_id=chosen, hold=hold)

    def direct(
        self, job: Job, *, hold: Grip | None = None, job_id: str | None = None, enqueued_ms: int = 1_700_000_000_000
    ) -> Delivery:
        """A delivery of a job that was sent straight to Redis."""
        message = encode(Message(job.job_name, job.to_payload(), enqueued_ms))
        return self.delivery(message, job_id=job_id, hold=hold)

    def delivery(self, message: bytes | None, *, job_id: str | None = None, hold: Grip | None = None) -> Delivery:
        now_ms = time.time_ns() // 1_000_000
        return Delivery(job_id or f"direct-{next(_numbers)}", "arq:queue", message, hold or Grip(), now_ms, now_ms)

    async def one(self, statement: str, **values: object) -> Row[Any]:
        """Run one statement in a transaction of its own and return its row."""
        async with self.engine.begin() as connection:
            return (await connection.execute(text(statement), values)).one()

    async def all(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        async with self.engine.begin() as connection:
            found = await connection.execute(text(statement), values)
            return [tuple(row) for row in found] if found.returns_rows else []

    async def run_of(self, delivery: Delivery) -> Row[Any]:
        """The one run of this id."""
        return await self.one("select * from worker.run where id = :id", id=delivery.job_id)

    async def runs(self) -> list[tuple[str, int]]:
        """Status and failures of every run."""
        return [(status, failures) for status, failures in await self.all("select status, attempt from worker.run")]

    async def rows(self) -> int:
        """How many jobs stand in the outbox."""
        ((rows,),) = await self.all("select count(*) from worker.outbox")
        return int(rows)

    async def effects(self) -> list[str]:
        """What handlers did with `effect` and committed."""
        return [note for (note,) in await self.all("select note from effect order by seq")]

    async def due(self, delivery: Delivery) -> None:
        """Let its backoff or snooze be over."""
        await self.all("update worker.run set next_at = now() where id = :id", id=delivery.job_id)

    @asynccontextmanager
    async def locked(self, key: int) -> AsyncGenerator[AsyncConnection]:
        """Hold an advisory lock, for those who wait for it in the database."""
        async with self.engine.begin() as connection:
            await connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": key})
            yield connection

    async def is_waiting(self, *, wanted: Literal["advisory", "transactionid", "tuple"] = "advisory") -> bool:
        """Whether a backend of this database waits for such a lock."""
        return bool(
            await self.all(
                "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' "
                "and wait_event = :wanted",
                wanted=wanted,
            )
        )

    async def queries(self) -> list[str]:
        """What other backends of this database execute just now."""
        active = await self.all(
            "select query from pg_stat_activity where datname = current_database() and state = 'active' "
            "and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        return [query for (query,) in active]


async def effect(session: AsyncSession | AsyncConnection, note: str) -> None:
    """The handler's work: a row that nothing keeps from being there twice."""
    await session.execute(text("insert into effect (note) values (:note)"), {"note": note})


async def slow_commit(session: AsyncSession, key: int) -> None:
    """Let this transaction's COMMIT wait for the advisory lock `key`."""
    await session.execute(text("insert into slow_commit (key) values (:key)"), {"key": key})


async def backend(session: AsyncSession) -> int:
    pid: int = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
    return pid


TABLES: Iterable[str] = (
    "create table effect (seq bigint generated always as identity, note text not null)",
    "create table taken (name text primary key)",
    "create table balance (id int primary key, cents int not null)",
    "insert into balance values (1, 100), (2, 100)",
    "create table slow_commit (key bigint not null)",
    """create function wait_for_key() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(new.key); return null; end $$""",
    """create constraint trigger wait after insert on slow_commit deferrable initially deferred
    for each row execute function wait_for_key()""",
    """create function empty() returns void language sql as $$
    delete from worker.attempt; delete from worker.reject; delete from worker.run; delete from worker.outbox;
    delete from effect; delete from taken; delete from slow_commit; update balance set cents = 100 $$""",
)
