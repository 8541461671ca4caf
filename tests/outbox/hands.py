"""A worker by hand: each step of a job's life when the test says so, with the real parts and the real servers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from arq.connections import ArqRedis
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from worker.app import App
from worker.availability import Availability
from worker.chunk import Chunk, Step
from worker.claim import Claim
from worker.claims import Claims
from worker.delivery import Delivery, NoHold
from worker.errors import Cancel, Snooze
from worker.executor import Executor
from worker.handler import ChunkedHandler, Handler
from worker.job import DEFAULT_QUEUE, Job
from worker.outbox import enqueue
from worker.outcome import Outcome
from worker.push import Pusher
from worker.relay import Intervals, Relay
from worker.reporting.observer import Observers
from worker.retry import RetryPolicy
from worker.run import current_run
from worker.settle import ending

AN_HOUR = timedelta(hours=1)


class Play(Job, name="test.play"):
    """Note the text in the table `applied`, then do as told."""

    text: str = ""
    does: Literal["well", "fail", "fail once", "snooze", "snooze once", "cancel", "wait", "enqueue"] = "well"


class Count(Job, name="test.count"):
    """Count to `upto`, a chunk each."""

    upto: int


class Loose(Job, name="test.loose"):
    """As Play, but keeps no run of a success."""

    fails: bool = False


@dataclass
class Stage:
    """Where handlers and tests wait for each other."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> App:
        at_once = RetryPolicy(attempts=3, base=timedelta(0))
        return App(
            [
                Handler(Play, self.play, retry=at_once),
                ChunkedHandler(Count, self.count, cursor=int, retry=at_once),
                Handler(Loose, self.loose, retry=at_once, once=False),
            ]
        )

    async def play(self, job: Play, session: AsyncSession) -> dict[str, str]:
        await _note(session, job.text)
        again = await _was_here(session)
        match job.does:
            case "fail":
                raise ValueError(job.text)
            case "fail once" if not again:
                raise ValueError(job.text)
            case "snooze":
                raise Snooze(AN_HOUR)
            case "snooze once" if not again:
                raise Snooze(timedelta(0))
            case "cancel":
                raise Cancel
            case "wait":
                self.begun.set()
                await self.go_on.wait()
            case "enqueue":
                enqueue(session, Play(text="enqueued by a handler"), key="k")
            case _:
                pass
        return {"text": job.text[:100]}

    async def count(self, job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
        number = (chunk.cursor or 0) + 1
        await _note(session, str(number))
        return chunk.step(number if number < job.upto else None, done=1, counts={"counted": 1})

    async def loose(self, job: Loose, session: AsyncSession) -> None:
        await _note(session, "loose")
        if job.fails:
            raise ValueError


async def _note(session: AsyncSession, noted: str) -> None:
    run = current_run()
    await session.execute(
        text("insert into applied (id, ms, noted) values (:id, :ms, :text)"),
        {"id": run.job_id, "ms": run.enqueued_ms, "text": noted},
    )


async def _was_here(session: AsyncSession) -> bool:
    """Whether an attempt of this run has left a trace in the ledger before."""
    run = current_run()
    traces = text("select status not in ('waiting', 'completed') from worker.run where id = :id and enqueued_ms = :ms")
    return bool((await session.execute(traces, {"id": run.job_id, "ms": run.enqueued_ms})).scalar_one())


class Hands:
    """Enqueues, relays, takes, carries out and settles, one after another."""

    def __init__(
        self, engine: AsyncEngine, redis: ArqRedis, stage: Stage, lease: timedelta = timedelta(seconds=15)
    ) -> None:
        self.engine = engine
        self.redis = redis
        self.stage = stage
        availability = Availability(engine)
        self.claims = Claims(redis, lease)
        self.relay = Relay(
            engine, redis, availability, Observers(), pushed=lambda: None, intervals=Intervals(settle=timedelta(0))
        )
        self._executor = Executor(stage.app().handlers, engine, Observers(), availability, "by hand")
        self._taken = 0

    async def enqueue(self, *jobs: Job, **options: Any) -> list[str]:
        """Each in a transaction of its own, since the newest is told by the order of commits."""
        ids: list[str] = []
        for job in jobs:
            async with AsyncSession(self.engine) as session, session.begin():
                ids.append(enqueue(session, job, **options))
        return ids

    async def take(self, want: int = 1, queue: str = DEFAULT_QUEUE) -> list[Claim]:
        self._taken += 1
        return await self.claims.take([queue], want, f"by-hand.{self._taken}")

    async def carry_out(self, claim: Claim) -> Outcome:
        """Up to the commit in PostgreSQL, and no further: Redis isn't told."""
        report = await self._executor.execute(_delivery(claim))
        return report.outcome

    async def finish(self, claim: Claim) -> Outcome:
        """One delivery from its claim to its acknowledgement."""
        report = await self._executor.execute(_delivery(claim))
        await self.claims.settle([ending(claim, report, AN_HOUR)])
        self.relay.acknowledged(claim.job_id)
        return report.outcome

    async def work(self, queue: str = DEFAULT_QUEUE) -> list[Outcome]:
        """Relay, take, carry out and acknowledge until nothing is due."""
        outcomes: list[Outcome] = []
        while True:
            sent, claims = await self.relay.drain(), await self.take(queue=queue)
            if not sent and not claims:
                return outcomes
            outcomes += [await self.finish(claim) for claim in claims]

    async def rows(self, columns: str = "*") -> Sequence[Row[Any]]:
        return await self.sql(f"select {columns} from worker.outbox order by seq")

    async def runs(self, columns: str = "*") -> Sequence[Row[Any]]:
        return await self.sql(f"select {columns} from worker.run order by created_at, enqueued_ms")

    async def applied(self) -> list[str]:
        """What the handlers have noted and committed, oldest first."""
        return [row.noted for row in await self.sql("select noted from applied order by seq")]

    async def sql(self, statement: str, **parameters: Any) -> Sequence[Row[Any]]:
        async with self.engine.begin() as connection:
            result = await (
                connection.execute(text(statement), parameters) if parameters else connection.exec_driver_sql(statement)
            )
            return result.all() if result.returns_rows else []


class Stopped:
    """A push that stops, as a process does that gets SIGSTOP, before or after Redis has done it."""

    def __init__(self, pusher: Pusher, *, after: bool) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self._push = pusher._push
        self._after = after
        pusher._push = self

    async def __call__(self, **arguments: Any) -> Any:
        pushed = await self._push(**arguments) if self._after else None
        self.reached.set()
        await self.go_on.wait()
        return pushed if self._after else await self._push(**arguments)


def _delivery(claim: Claim) -> Delivery:
    return Delivery(claim.job_id, claim.queue, claim.message, NoHold(), claim.claimed_ms, claim.due_ms, claim.failures)
