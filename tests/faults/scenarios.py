"""What a worker is asked to do while it is struck. Together they lead it past every await."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from tempfile import TemporaryFile
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.faults.others import ask_plain, by_hand, draining, plain, plain_burst, plain_closed, plain_stopped
from tests.faults.stage import Asked, Running, Stage, app_worker
from worker.app import App
from worker.chunk import Chunk, Step
from worker.driver import Driver
from worker.errors import Cancel, Snooze
from worker.handler import BatchHandler, ChunkedHandler, Handler
from worker.job import Job
from worker.outbox import enqueue
from worker.queue import Queue
from worker.retry import RetryPolicy
from worker.run import current_run, current_runs
from worker.schedule import Cron
from worker.shield import in_thread
from worker.wire import ABORT_SET, Message, encode

CHUNKS = 2
ABORTED_WITHIN_S = 1.0
"""A worker looks for aborted jobs every 20 ms here."""
RETRY = RetryPolicy(attempts=100, base=timedelta(0))


class Play(Job, name="play"):
    label: str = "once"
    fails: bool = False
    """Its first attempt."""
    does: Literal["well", "enqueue", "roll back", "be overtaken", "snooze", "cancel", "wait", "write"] = "well"


class Count(Job, name="count"):
    waits: bool = False
    """And does its work all the same if it is aborted meanwhile."""


class Spread(Job, name="spread"):
    pass


class Together(Job, name="together"):
    label: str
    fails: bool = False


class Gather(Job, name="gather"):
    label: str = "once"


class Loose(Job, name="loose"):
    fails: bool = False


async def play(job: Play, session: AsyncSession) -> str:
    run = current_run()
    await note(session, job.label)
    if job.does == "enqueue":
        enqueue(session, Play(), job_id=f"{run.job_id}+")
    if job.does == "snooze" and not await session.scalar(text(HAS_SNOOZED), {"id": run.job_id}):
        raise Snooze(timedelta(0))
    if job.does == "cancel":
        raise Cancel
    if job.does == "wait":
        await _until_aborted()
    if job.does == "write":
        with TemporaryFile() as file:
            await in_thread(file.write, b"once")
    if job.does in {"roll back", "be overtaken"} and run.attempt == 1:
        raw = await (await session.connection()).get_raw_connection()
        driver: Any = raw.driver_connection
        await driver.fetch("rollback")
        if job.does == "be overtaken":
            await driver.fetch(ELSEWHERE, run.job_id, run.enqueued_ms)
        raise ValueError(job.label)
    if job.fails and run.attempt == 1:
        raise ValueError(job.label)
    return job.label


async def _until_aborted() -> None:
    """Or for as long as it takes to see that it won't be: the strike has hit whoever should have."""
    with suppress(TimeoutError):
        async with asyncio.timeout(ABORTED_WITHIN_S):
            await asyncio.Event().wait()


async def count(job: Count, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    number = (chunk.cursor or 0) + 1
    if job.waits:
        with suppress(asyncio.CancelledError):
            await _until_aborted()
    await note(session, str(number))
    return chunk.step(number if number < CHUNKS else None)


async def spread(_job: Spread, session: AsyncSession, chunk: Chunk[int]) -> Step[int]:
    await note(session, "first" if chunk.upper else "last")
    return chunk.step(None)


async def in_two(_job: Spread, _session: AsyncSession, _partitions: int) -> Sequence[int]:
    return [1]


async def gathered(jobs: Sequence[Gather], session: AsyncSession) -> None:
    for job, run in zip(jobs, current_runs(), strict=True):
        await note(session, job.label, run.job_id)


async def together(jobs: Sequence[Together], session: AsyncSession) -> None:
    for job, run in zip(jobs, current_runs(), strict=True):
        if job.fails and run.attempt == 1:
            raise ValueError(job.label)
        await note(session, job.label, run.job_id)


async def loose(job: Loose, session: AsyncSession) -> None:
    await note(session, "loose")
    if job.fails and current_run().attempt == 1:
        raise ValueError


async def note(session: AsyncSession, label: str, job_id: str | None = None) -> None:
    job_id = job_id or current_run().job_id
    await session.execute(
        text("insert into effect (id, note) values (:id, :note)"), {"id": job_id, "note": f"{job_id} {label}"}
    )


ELSEWHERE = """
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, attempt)
values ($1, $2, 'play', 'arq:queue', 'retrying', true, 1)
"""
"""What another worker leaves that has counted a failure of the same run."""
HAS_SNOOZED = "select exists (select from worker.run where id = :id and status = 'snoozed')"

HANDLERS = (
    Handler(Play, play, retry=RETRY),
    ChunkedHandler(Count, count, cursor=int, retry=RETRY),
    ChunkedHandler(Spread, spread, cursor=int, retry=RETRY, partitions=2, split=in_two),
    BatchHandler(Together, together, max_size=3, linger=timedelta(milliseconds=5), retry=RETRY),
    BatchHandler(Gather, gathered, max_size=3, linger=timedelta(seconds=ABORTED_WITHIN_S / 4), retry=RETRY),
    Handler(Loose, loose, retry=RETRY, once=False),
)
YEARLY = Cron(Play(label="yearly"), "0 0 1 1 *", name="yearly", grace=timedelta(days=800))


@dataclass(frozen=True)
class Scenario:
    name: str
    ask: Callable[[Stage], Awaitable[Asked]]
    schedule: Sequence[Cron] = ()
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    worker: Running = app_worker

    def app(self) -> App:
        return App(HANDLERS, self.schedule)


async def _enqueued(stage: Stage, *jobs: Job, **options: Any) -> list[str]:
    async with AsyncSession(stage.engine) as session, session.begin():
        return [enqueue(session, job, **options) for job in jobs]


def _once(ids: Sequence[str], label: str = "once", **options: Any) -> Asked:
    return Asked([f"{job_id} {label}" for job_id in ids], ids, **options)


async def outbox(stage: Stage) -> Asked:
    return _once(await _enqueued(stage, Play()))


async def _direct(stage: Stage, job: Job) -> list[str]:
    job_id = await Queue(stage.redis).enqueue(job)
    assert job_id is not None
    return [job_id]


async def direct(stage: Stage) -> Asked:
    return _once(await _direct(stage, Play()))


async def failing(stage: Stage) -> Asked:
    return _once(await _enqueued(stage, Play(fails=True)))


async def failing_direct(stage: Stage) -> Asked:
    return _once(await _direct(stage, Play(fails=True)))


def _chunks(job_id: str) -> Asked:
    return Asked([f"{job_id} {number}" for number in range(1, CHUNKS + 1)], [job_id])


async def chunked(stage: Stage) -> Asked:
    return _chunks(*await _enqueued(stage, Count()))


async def chunked_direct(stage: Stage) -> Asked:
    return _chunks(*await _direct(stage, Count()))


def _parts(job_id: str) -> Asked:
    parts = [f"{job_id}:1", f"{job_id}:2"]
    return Asked([f"{parts[0]} first", f"{parts[1]} last"], [job_id, *parts])


async def parted(stage: Stage) -> Asked:
    return _parts(*await _enqueued(stage, Spread()))


async def parted_direct(stage: Stage) -> Asked:
    return _parts(*await _direct(stage, Spread()))


async def held_back(stage: Stage) -> Asked:
    """A transaction has been open for too long, until a chunk was held back for it."""
    old = await stage.zombie()
    await old.execute("begin; select pg_sleep(0.3)")
    asked = _chunks(*await _enqueued(stage, Count()))
    await stage.comes_to("attempt:Attempt._read:1")
    await old.execute("rollback")
    return asked


async def batch(stage: Stage) -> Asked:
    ids = await _enqueued(stage, Together(label="a"), Together(label="b"))
    ids += await _direct(stage, Together(label="c"))
    return Asked([f"{job_id} {label}" for job_id, label in zip(ids, "abc", strict=True)], ids)


async def failing_batch(stage: Stage) -> Asked:
    ids = await _enqueued(stage, Together(label="a"), Together(label="b", fails=True), Together(label="c"))
    return Asked([f"{job_id} {label}" for job_id, label in zip(ids, "abc", strict=True)], ids)


async def unkept(stage: Stage) -> Asked:
    return _once(await _enqueued(stage, Loose()), "loose", needs_run=False, at_least_once=True)


async def failing_unkept(stage: Stage) -> Asked:
    return _once(await _direct(stage, Loose(fails=True)), "loose", needs_run=False, at_least_once=True)


async def keyed(stage: Stage) -> Asked:
    ids = await _enqueued(stage, Play(label="older"), Play(label="newest"), key=uuid4().hex)
    return _once(ids[:1], "newest")


async def refused(stage: Stage) -> Asked:
    """Redis has another job of the id: each has its turn."""
    chosen = uuid4().hex
    await Queue(stage.redis).enqueue(Play(label="first"), job_id=chosen, delay=timedelta(seconds=1))
    await _enqueued(stage, Play(label="second"), job_id=chosen)
    return Asked([f"{chosen} first", f"{chosen} second"], [chosen])


async def cron(stage: Stage) -> Asked:
    """The last tick was noted a year ago. In one statement, since the worker looks all the time."""
    await stage.sql(
        """with gone as (delete from worker.cron_tick)
        insert into worker.cron_tick (name, scheduled_at) values ('yearly', now() - interval '366 days')"""
    )
    return Asked(["yearly"], ids_sql="select job_id from worker.cron_tick where job_id is not null")


async def duplicate(stage: Stage) -> Asked:
    """Delivered again though they are done: alone, and in a batch with one that isn't."""
    done, done_too, new = uuid4().hex, uuid4().hex, uuid4().hex
    named = ((done, "play"), (done_too, "together"), (new, "together"))
    async with stage.postgres.transaction():
        for job_id, name in named:
            await stage.sql(LOST, *_lost_row(job_id, name, timedelta(0)))
        for job_id, name in named[:2]:
            await stage.sql(DONE, job_id, name)
        await stage.sql("notify ratchet_outbox")
    return Asked([f"{new} once"], [done, done_too, new])


async def swept(stage: Stage) -> Asked:
    """Marked as sent long ago, but Redis has lost it."""
    return await _lost(stage, timedelta(days=1))


async def wiped(stage: Stage) -> Asked:
    """Marked as sent, and everything that was sent is gone."""
    await stage.redis.flushall()
    return await _lost(stage, timedelta(0))


async def _lost(stage: Stage, ago: timedelta) -> Asked:
    job_id = uuid4().hex
    await stage.sql(LOST, *_lost_row(job_id, "play", ago))
    await stage.sql("notify ratchet_outbox")
    return _once([job_id])


LOST = """
insert into worker.outbox (id, enqueued_ms, name, queue, message, sent_epoch, sent_at)
select $1, 1, $2, 'arq:queue', $3, epoch, now() - $4::interval from worker.relay_state
"""
DONE = """
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, result, finished_at)
values ($1, 1, $2, 'arq:queue', 'completed', true, 'null', now())
"""


def _lost_row(job_id: str, name: str, ago: timedelta) -> tuple[object, ...]:
    message = encode(Message(name, b'{"label":"once"}', 1, from_outbox=True))
    return job_id, name, message, ago


async def unreadable(stage: Stage) -> Asked:
    """Not a message: dead, with its bytes kept."""
    job_id = uuid4().hex
    await stage.redis.set(f"arq:job:{job_id}", b"\x80")
    await stage.redis.zadd("arq:queue", {job_id: 1})
    return Asked([], [job_id], statuses=["dead"])


async def expired(stage: Stage) -> Asked:
    """An id without a message, which PostgreSQL doesn't know."""
    job_id = uuid4().hex
    await stage.redis.zadd("arq:queue", {job_id: 1})
    return Asked([], [job_id], needs_run=False)


async def snoozing(stage: Stage) -> Asked:
    return _once(await _enqueued(stage, Play(does="snooze")))


async def cancelling(stage: Stage) -> Asked:
    return Asked([], await _enqueued(stage, Play(does="cancel")), statuses=["cancelled"])


async def enqueueing(stage: Stage) -> Asked:
    [job_id] = await _enqueued(stage, Play(does="enqueue"))
    return _once([job_id, f"{job_id}+"])


async def writing(stage: Stage) -> Asked:
    return _once(await _enqueued(stage, Play(does="write")))


async def rolling_back(stage: Stage) -> Asked:
    """The handler ends its transaction by itself, in which its run was marked done."""
    return _once(await _direct(stage, Play(does="roll back")))


async def overtaken(stage: Stage) -> Asked:
    """Another worker has counted the failure that this one wants to note."""
    return _once(await _direct(stage, Play(does="be overtaken")))


async def held(stage: Stage) -> Asked:
    """A worker that was stopped in mid-transaction holds the run's lock."""
    return _once([await _held_by(stage, await stage.zombie())])


async def held_by_a_person(stage: Stage) -> Asked:
    """Whose transaction nobody ends, so that the worker looks again."""
    person = await stage.zombie("psql")
    asked = _once([await _held_by(stage, person)])
    await stage.comes_to("zombies:Zombies._end_blockers:2")
    await person.execute("rollback")
    return asked


async def _held_by(stage: Stage, holder: Driver) -> str:
    job_id = uuid4().hex
    await holder.execute("begin")
    await holder.execute(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox)"
        f" values ('{job_id}', 1, 'play', 'arq:queue', 'waiting', false)"
    )
    await stage.redis.set(f"arq:job:{job_id}", encode(Message("play", b'{"label":"once"}', 1)))
    await stage.redis.zadd("arq:queue", {job_id: 1})
    return job_id


async def out_of_turn(stage: Stage) -> Asked:
    """Somebody has the relays' turn, until one has waited for it."""
    person = await stage.zombie("psql")
    await person.execute("begin")
    await person.execute("select from worker.relay_state for update")
    asked = await keyed(stage)
    await stage.comes_to("brief:turn:3")
    await person.execute("rollback")
    return asked


async def renewing(stage: Stage) -> Asked:
    """The lease's thread seems to renew while the job ends, until somebody has waited for it."""
    await stage.settles_in()
    under_way = stage.victim.renewing
    assert under_way is not None
    under_way.set()
    asked = _once(await _enqueued(stage, Play()))
    await stage.comes_to("lease:Leases.renewed:0")
    under_way.clear()
    return asked


async def away(stage: Stage) -> Asked:
    """PostgreSQL lets no worker in, until that has been noticed."""
    allow = "update pg_database set datallowconn = $1 where datname = current_database()"
    await stage.sql(allow, False)  # noqa: FBT003 - a value of the statement
    try:
        await stage.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and starts_with(application_name, 'ratchet worker')"
        )
        asked = _once(await _enqueued(stage, Play()))
        await stage.comes_to("availability:Availability._find:1", "relay:Relay._say:1", "ticker:Ticker._look:2")
    finally:
        await stage.sql(allow, True)  # noqa: FBT003 - as above
    return asked


async def first_deploy(stage: Stage) -> Asked:
    """No tick was ever noted."""
    await stage.sql("delete from worker.cron_tick")
    await stage.comes_to("ticker:Ticker.tick:2")
    return _once(await _enqueued(stage, Play()))


async def aborted(stage: Stage) -> Asked:
    """By arq's client, before it began: whoever takes it knows, though the one before has died of it."""
    job_id = uuid4().hex
    await Queue(stage.redis).enqueue(Play(), job_id=job_id, delay=timedelta(milliseconds=200))
    await stage.redis.zadd(ABORT_SET, {job_id: 1})
    return Asked([], [job_id], statuses=["cancelled"])


def _unless_aborted(asked: Asked) -> Asked:
    """An abort that comes too late is none."""
    return replace(asked, statuses=["cancelled", "completed"], at_most_once=True)


async def _abort(stage: Stage, job_id: str, at: str) -> None:
    """By arq's client, once the worker has come to the site `at`."""
    await stage.comes_to(at)
    await stage.redis.zadd(ABORT_SET, {job_id: 1})


async def aborted_running(stage: Stage) -> Asked:
    [job_id] = await _enqueued(stage, Play(does="wait"))
    await _abort(stage, job_id, "call:within_timeout:0")
    return _unless_aborted(_once([job_id]))


async def aborted_between(stage: Stage) -> Asked:
    """In a chunk, which commits nevertheless."""
    [job_id] = await _enqueued(stage, Count(waits=True))
    await _abort(stage, job_id, "call:_run_chunk:1")
    return _unless_aborted(_chunks(job_id))


async def aborted_gathering(stage: Stage) -> Asked:
    """In a batch that hasn't begun."""
    ids = await _enqueued(stage, Gather(label="a"), Gather(label="b"))
    await _abort(stage, ids[0], "batch:Batches.settle:0")
    return _unless_aborted(Asked([f"{job_id} {label}" for job_id, label in zip(ids, "ab", strict=True)], ids))


SCENARIOS = (
    *(Scenario(ask.__name__, ask) for ask in (outbox, direct, failing, failing_direct, chunked, chunked_direct)),
    *(Scenario(ask.__name__, ask) for ask in (parted, parted_direct)),
    Scenario("held_back", held_back, settings={"max_transaction_age": 0.25}),
    *(Scenario(ask.__name__, ask) for ask in (batch, failing_batch, unkept, failing_unkept, keyed, refused)),
    Scenario("cron", cron, schedule=[YEARLY]),
    *(Scenario(ask.__name__, ask, settings={"sweep_interval": 0.02}) for ask in (swept, duplicate)),
    *(Scenario(ask.__name__, ask) for ask in (wiped, unreadable, expired, aborted)),
    *(Scenario(ask.__name__, ask) for ask in (aborted_running, aborted_between, aborted_gathering)),
    *(Scenario(ask.__name__, ask) for ask in (snoozing, cancelling, enqueueing, writing, rolling_back, overtaken)),
    *(Scenario(ask.__name__, ask) for ask in (held, held_by_a_person, out_of_turn)),
    Scenario("renewing", renewing, settings={"lease": 60}),
    *(Scenario(ask.__name__, ask, schedule=[YEARLY]) for ask in (away, first_deploy)),
    Scenario("burst", outbox, worker=partial(app_worker, burst=True)),
    Scenario("drained", outbox, worker=draining),
    *(Scenario(worker.__name__, ask_plain, worker=worker) for worker in (plain, plain_burst, by_hand)),
    *(Scenario(worker.__name__, ask_plain, worker=worker) for worker in (plain_stopped, plain_closed)),
)
