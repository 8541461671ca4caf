"""Who enqueues by hand and loses a server is told what became of the job: enqueued once more, it would run twice."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.cli.conftest import APP
from tests.conftest import StartWorker
from tests.consumer.redis_proxy import RedisProxy
from tests.runtime.postgres_proxy import COMMITTED, PostgresProxy

GREET = ("enqueue", "tests.greet", "--json", '{"name": "Ada"}')


@pytest.fixture
async def line(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresProxy]:
    line = PostgresProxy(database_url, tmp_path_factory.mktemp("pg"))
    await line.start()
    yield line
    await line.stop()


@pytest.mark.parametrize(
    ("job", "untold"),
    [
        (GREET, ""),
        (("enqueue", "tests.ping"), "; its handler keeps no run, so where nothing is found it may be done already"),
    ],
)
async def test_an_answer_to_commit_that_is_lost_leaves_no_advice_to_enqueue_again(
    start_worker: StartWorker, line: PostgresProxy, database_url: str, job: tuple[str, ...], untold: str
) -> None:
    line.cut_after = COMMITTED
    enqueue = await start_worker(*job, WORKER_APP=APP, DATABASE_URL=line.url)
    assert await enqueue.wait() == 3
    connection = await asyncpg.connect(database_url)
    job_id = await connection.fetchval("select id from worker.outbox")
    await connection.close()
    assert enqueue.output == (
        f"Error: The connection to PostgreSQL was lost before it said whether the job {job_id} was enqueued; "
        f"look with worker show {job_id} before you enqueue it again{untold}."
    )


@pytest.mark.leaves_keys("nobody takes the direct job")
async def test_nor_does_an_answer_of_redis_that_is_lost(start_worker: StartWorker, redis_url: str) -> None:
    async with RedisProxy(redis_url) as line:
        line.lose_answer_to(b"EVAL")
        enqueue = await start_worker(*GREET, "--direct", WORKER_APP=APP, REDIS_URL=line.url)
        assert await enqueue.wait() == 3
    assert enqueue.output == (
        "Error: The connection to Redis was lost before it said whether the job was enqueued; "
        "look with worker status and worker runs before you enqueue it again."
    )


async def test_a_wait_that_loses_its_server_says_that_the_job_is_enqueued(
    start_worker: StartWorker, line: PostgresProxy
) -> None:
    line.hold_back(b"r.finished_at is not null as ended")
    enqueue = await start_worker(*GREET, "--wait", WORKER_APP=APP, DATABASE_URL=line.url)
    await line.holds.wait()
    line.hang_up()
    assert await enqueue.wait() == 3
    job_id, told = enqueue.output.splitlines()
    assert told.startswith(f"Error: The job {job_id} is enqueued, but waiting for its end failed (")
    assert told.endswith(f"); don't enqueue it again, see worker show {job_id}.")
