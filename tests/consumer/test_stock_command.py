"""The stock `arq jobs.app.WorkerSettings` command: all that is promised of jobs that can be run holds under it."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job as ArqJob
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.orders.contracts import ShipOrder
from jobs.users.contracts import CreateUser, ImportUsers
from jobs.users.models import User
from tests.consumer.app import Mark, Wait, app
from tests.consumer.conftest import Effects, Work
from tests.support.waiting import wait_until
from worker.app import App
from worker.models import Outbox, Run
from worker.outbox import enqueue
from worker.queue import Queue
from worker.stock import worker_settings
from worker.wire import JobFailed

LOCK = 7
ARQ = str(Path(sys.executable).with_name("arq"))


class RunningArq(NamedTuple):
    """An `arq` command, and the file that it writes to: a pipe that nobody reads would hold it up when it is full."""

    process: Process
    log: Path

    async def output(self) -> str:
        """All that it has written, once it has ended."""
        async with asyncio.timeout(30):
            await self.process.wait()
        return self.log.read_text()


RunArq = Callable[..., Awaitable[RunningArq]]


@pytest.fixture
async def run_arq(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[RunArq]:
    """Start the `arq` command; what still runs when the test ends is killed."""
    started: list[Process] = []

    async def start(*options: str, settings: str = "jobs.app.WorkerSettings", **more: str) -> RunningArq:
        env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "REDIS_URL": redis_url, **more}
        log = tmp_path / f"arq-{len(started)}.log"
        with log.open("wb") as written:
            process = await asyncio.create_subprocess_exec(
                ARQ, settings, *options, env={**env, "WORKER_FILES_DIR": str(tmp_path)},
                stdin=asyncio.subprocess.DEVNULL, stdout=written, stderr=STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return RunningArq(process, log)

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def is_waiting_for_lock(session: AsyncSession) -> bool:
    await session.rollback()  # a transaction sees pg_stat_activity as it was at its first look
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'")
    return bool((await session.execute(waiting)).scalar_one())


async def test_it_runs_jobs_from_the_outbox_and_from_redis_each_once(
    arq: ArqRedis, engine: AsyncEngine, session: AsyncSession, run_arq: RunArq, tmp_path: Path
) -> None:
    (tmp_path / "users.csv").write_text("email,name\n" + "".join(f"u{n}@example.com,U{n}\n" for n in range(50)))
    outbox = enqueue(session, CreateUser(email="ann@example.com", name="Ann"))
    chunked = enqueue(session, ImportUsers(path="users.csv"))
    dead = enqueue(session, ShipOrder(order_id=404))
    await session.commit()
    direct = await Queue(arq).enqueue(CreateUser(email="bob@example.com", name="Bob"))
    assert direct is not None
    message = await arq.get(f"arq:job:{direct}")
    running = await run_arq()

    async def is_empty() -> bool:
        await session.rollback()
        waiting = (await session.scalars(select(Outbox.id))).all()
        return not waiting and await arq.exists(f"arq:result:{direct}") == 1

    await wait_until(is_empty, timeout=30)
    await arq.delete(f"arq:result:{direct}")
    await arq.set(f"arq:job:{direct}", message)
    await arq.zadd("arq:queue", {direct: 1})
    again = await ArqJob(direct, arq, _deserializer=arq.job_deserializer).result(timeout=20, poll_delay=0.05)
    running.process.send_signal(signal.SIGTERM)
    told = await running.output()
    assert running.process.returncode == 0, told
    statuses = dict((await session.execute(select(Run.id, Run.status))).all())
    assert statuses == {outbox: "completed", chunked: "completed", dead: "dead", direct: "completed"}
    bob = select(User.id).where(User.email == "bob@example.com")
    assert again == {"user_id": (await session.execute(bob)).scalar_one()}
    assert len((await session.scalars(select(User.id))).all()) == 52
    with pytest.raises(JobFailed, match=r"^NoResultFound: "):
        await ArqJob(dead, arq, _deserializer=arq.job_deserializer).result()


async def test_a_signal_rolls_the_job_back_and_the_next_worker_does_it_with_no_attempt_burnt(
    session: AsyncSession, engine: AsyncEngine, run_arq: RunArq, effects: Effects
) -> None:
    settings = "tests.consumer.app.WorkerSettings"
    job_id = enqueue(session, Wait(lock=LOCK))
    await session.commit()
    async with engine.begin() as lock:
        await lock.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        running = await run_arq(settings=settings)
        await wait_until(partial(is_waiting_for_lock, session), timeout=30)
        running.process.send_signal(signal.SIGTERM)
        assert "began" in await running.output()
        assert running.process.returncode == 0
        assert await effects() == []
    await (await run_arq("--burst", settings=settings)).output()
    assert await effects() == [job_id]
    await session.rollback()
    run = (await session.execute(select(Run))).scalar_one()
    assert (run.status, run.attempt) == ("completed", 0)


async def test_an_abort_of_a_job_that_is_due_much_later_cancels_it_rather_than_running_it_at_once(
    arq: ArqRedis, session: AsyncSession, run_arq: RunArq, effects: Effects
) -> None:
    """arq's abort makes it due: a worker that asks for no aborts would run it now."""
    job = await arq.enqueue_job("wait", lock=LOCK, _defer_by=3600)
    assert job is not None
    aborting = asyncio.create_task(job.abort(timeout=30, poll_delay=0.05))

    async def is_due() -> bool:
        return bool(await arq.zscore("arq:queue", job.job_id) == 1 and await arq.exists("arq:abort"))

    await wait_until(is_due)
    await (await run_arq("--burst", settings="tests.consumer.app.WorkerSettings")).output()
    assert await aborting
    assert await effects() == []
    run = (await session.execute(select(Run))).scalar_one()
    assert (run.id, run.status) == (job.job_id, "cancelled")
    assert await arq.exists("arq:abort") == 0


@pytest.mark.parametrize("client", ["arq", "outbox"])
async def test_an_abort_ends_a_job_that_runs(
    arq: ArqRedis, session: AsyncSession, engine: AsyncEngine, run_arq: RunArq, effects: Effects, client: str
) -> None:
    if client == "outbox":
        job_id = enqueue(session, Wait(lock=LOCK))
        await session.commit()
    else:
        job_id = await Queue(arq).enqueue(Wait(lock=LOCK)) or ""
    async with engine.begin() as lock:
        await lock.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        running = await run_arq(settings="tests.consumer.app.WorkerSettings")
        await wait_until(partial(is_waiting_for_lock, session), timeout=30)
        assert await ArqJob(job_id, arq, _deserializer=arq.job_deserializer).abort(timeout=20, poll_delay=0.05)
    running.process.send_signal(signal.SIGTERM)
    await running.output()
    assert await effects() == []
    await session.rollback()
    run = (await session.execute(select(Run))).scalar_one()
    assert (run.id, run.status) == (job_id, "cancelled")
    assert (await session.scalars(select(Outbox.id))).all() == []


async def test_beside_our_worker_on_one_queue_each_job_runs_once(
    arq: ArqRedis, engine: AsyncEngine, work: Work, run_arq: RunArq, effects: Effects
) -> None:
    async with engine.begin() as lock:
        await lock.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        ids = await Queue(arq).enqueue_many(Mark(lock=LOCK) for _ in range(2_000))
        running = await run_arq(settings="tests.consumer.app.WorkerSettings")
        async with work(*app.handlers.values()):

            async def both_hold_some() -> bool:
                held = await arq.keys("arq:in-progress:*")
                holds = [hold == b"1" for hold in await arq.mget(held) if hold] if held else []
                return any(holds) and not all(holds)

            await wait_until(both_hold_some, timeout=30)
            await lock.rollback()

            async def is_empty() -> bool:
                return not await arq.exists("arq:queue")

            await wait_until(is_empty, timeout=60)
    running.process.send_signal(signal.SIGTERM)
    await running.output()
    marks = [mark.split() for mark in await effects()]
    assert [job_id for job_id, _ in marks] == sorted(ids)
    assert {int(pid) for _, pid in marks} == {os.getpid(), running.process.pid}


async def test_what_the_app_opens_is_open_under_it_too(run_arq: RunArq, effects: Effects) -> None:
    told = await (await run_arq("--burst", settings="tests.consumer.app.WorkerSettings")).output()
    assert 0 < told.find("opened") < told.find("closed"), told


async def test_its_check_option_asks_the_same_redis(run_arq: RunArq) -> None:
    running = await run_arq("--check")
    assert "no health check sentinel" in await running.output()
    assert running.process.returncode == 1


def test_no_setting_makes_the_import_fail() -> None:
    """`worker run` imports the module too, and has sentences for them."""
    nonsense = {"REDIS_URL": "nonsense", "WORKER_CONCURRENCY": "many", "WORKER_KEEP_RESULT": "long"}
    for environment in ({}, nonsense):
        settings = worker_settings(App(handlers=()), environment)
        assert settings["redis_settings"].host == "localhost"
        assert settings["max_jobs"] == 10
        assert settings["keep_result"] == 3600


async def test_a_job_id_is_known_for_as_long_as_results_are_to_be_kept(arq: ArqRedis, run_arq: RunArq) -> None:
    queue = Queue(arq)
    await queue.enqueue(Mark(lock=LOCK), job_id="paid-17")
    running = await run_arq("--burst", settings="tests.consumer.app.WorkerSettings", WORKER_KEEP_RESULT="86400")
    told = await running.output()
    assert await arq.ttl("arq:result:paid-17") > 3600, told
    assert await queue.enqueue(Mark(lock=LOCK), job_id="paid-17") is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", RedisSettings(host="h", port=1, database=2)),
        ("redis://ann:p%40ss@h", RedisSettings(host="h", username="ann", password="p@ss")),
        ("rediss://h?ssl_cert_reqs=none", RedisSettings(host="h", ssl=True, ssl_cert_reqs="none")),
        ("unix:///run/redis.sock?db=3", RedisSettings(unix_socket_path="/run/redis.sock", database=3)),
        (
            "redis+sentinel://ann:p%40ss@a:1,b:2/main/4",
            RedisSettings(
                host=[("a", 1), ("b", 2)], sentinel=True, sentinel_master="main", database=4, username="ann",
                password="p@ss",
            ),
        ),
    ],
)  # fmt: skip
def test_it_takes_the_urls_that_worker_run_takes(url: str, expected: RedisSettings) -> None:
    settings = worker_settings(App(handlers=()), {"REDIS_URL": url, "WORKER_CONCURRENCY": "3"})
    assert settings["redis_settings"] == expected
    assert settings["max_jobs"] == 3
