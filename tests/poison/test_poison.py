"""A job that kills its process is Dead after three deaths of its own child, and its neighbours never notice."""

from datetime import timedelta

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.poison.app import Count, Neighbour, Once, Parse, Poison, Way
from tests.poison.conftest import Query, Run, Suspected
from tests.processes.conftest import wait_until_gone
from tests.support.locks import locked
from tests.support.waiting import wait_until
from worker.claims import Claims
from worker.outbox import enqueue, enqueue_many

DEATH, OTHERS = 1, 2
WAITING = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
OF_STATUS = "select name, status, count(*) from worker.run group by 1, 2 order by 1, 2"


async def test_a_job_that_kills_its_worker_is_dead_after_three_deaths_of_its_own_child_and_99_neighbours_are_done(
    run: Run, engine: AsyncEngine, query: Query
) -> None:
    async with locked(engine, OTHERS):
        async with locked(engine, DEATH):
            async with AsyncSession(engine) as session, session.begin():
                enqueue_many(session, [Neighbour(lock=OTHERS) for _ in range(99)])
                poison = enqueue(session, Poison(lock=DEATH))
            first = await run(WORKER_CONCURRENCY="100")

            async def all_run() -> bool:
                return [tuple(row) for row in await query(WAITING)] == [(100,)]

            await wait_until(all_run, timeout=30)
        assert await first.wait() == 9
    second = await run(WORKER_CONCURRENCY="100")
    dead = await second.wait_for("dead", job_id=poison, timeout=120)
    assert dead["error"] == "ProcessDied"

    async def all_ended() -> bool:
        ended = [tuple(row) for row in await query(OF_STATUS)]
        return ended == [("neighbour", "completed", 99), ("poison", "dead", 1)]

    await wait_until(all_ended, timeout=30)
    assert [tuple(row) for row in await query("select count(*), count(distinct job_id) from effect")] == [(99, 99)]
    deaths = await query("select id, attempt, error, worker from worker.attempt order by seq")
    assert [(row.id, row.attempt) for row in deaths] == [(poison, 1), (poison, 2), (poison, 3)]
    assert all("ran this job alone, exited with 9" in row.error for row in deaths)
    assert {row.worker.rpartition(":")[2] for row in deaths} == {str(second.pid)}  # which has outlived them all
    assert await second.stop() == 0


async def test_whatever_a_process_dies_of_stands_beside_the_job(
    run: Run, engine: AsyncEngine, query: Query, suspected: Suspected
) -> None:
    """None has an outbox row before: the first death adopts a direct job. One attempt is what its policy allows."""
    ways: tuple[Way, ...] = ("segfault", "kill", "hang")
    ids = await suspected(*(Once(way=way) for way in ways))
    worker = await run()
    for job_id in ids:
        await worker.wait_for("dead", job_id=job_id, timeout=120)
    attempts = "select error, traceback from worker.attempt where id = :id"
    told = {way: (await query(attempts, id=job_id))[0] for way, job_id in zip(ways, ids, strict=True)}
    assert "was killed by SIGSEGV" in told["segfault"].error
    assert "in _segfault" in told["segfault"].traceback  # where it was
    assert "was killed by SIGKILL" in told["kill"].error
    assert "hung, and was ended" in told["hang"].error
    assert "in _hang" in told["hang"].traceback
    assert await query("select * from effect") == []
    assert await worker.stop() == 0


async def test_a_committed_chunk_starts_the_count_of_deaths_anew(
    run: Run, engine: AsyncEngine, query: Query, suspected: Suspected
) -> None:
    """One dies once in each of its chunks, and is done in the end; one dies in the same chunk over and over."""
    moves, stays = await suspected(Count(to=3, deadly=(0, 1, 2)), Count(to=3, deadly=(1,), always=True))
    worker = await run()
    await worker.wait_for("dead", job_id=stays, timeout=120)
    await worker.wait_for("completed", job_id=moves, timeout=120)
    deaths = "select count(*) from worker.attempt where id = :id"
    assert [(await query(deaths, id=job_id))[0].count for job_id in (moves, stays)] == [3, 3]
    results = await query("select id, done, result from worker.run order by done")
    assert [(row.id, row.done, row.result) for row in results] == [
        (stays, 1, {"counted": 1}),
        (moves, 3, {"counted": 3}),
    ]
    assert await worker.stop() == 0


async def test_what_the_app_opens_is_open_in_a_child_too(
    run: Run, engine: AsyncEngine, query: Query, suspected: Suspected
) -> None:
    async with locked(engine, OTHERS):
        [job_id] = await suspected(Neighbour(lock=OTHERS))
        worker = await run()
        child = (await worker.wait_for("began", job_id=job_id))["pid"]
        opened = [line["pid"] for line in worker.lines if line.get("event") == "opened"]
        assert opened == [worker.pid, child]
    await worker.wait_for("completed", job_id=job_id)
    assert await worker.stop() == 0
    assert [line["pid"] for line in worker.lines if line.get("event") == "closed"] == [child, worker.pid]


async def test_a_child_ends_with_its_worker_and_the_suspect_runs_elsewhere(
    run: Run, engine: AsyncEngine, query: Query, suspected: Suspected
) -> None:
    async with locked(engine, OTHERS):
        [job_id] = await suspected(Neighbour(lock=OTHERS))
        first = await run()
        child = (await first.wait_for("began", job_id=job_id))["pid"]
        assert child != first.pid
        await first.kill()
        await wait_until_gone(child)
    second = await run()
    assert (await second.wait_for("began", job_id=job_id))["pid"] != second.pid
    await second.wait_for("completed", job_id=job_id)
    assert [tuple(row) for row in await query("select job_id from effect")] == [(job_id,)]
    assert await query("select * from worker.attempt") == []  # nobody's death is counted but a child's
    assert await second.stop() == 0


async def test_a_suspect_can_be_aborted_and_one_that_is_handed_back_stays_one(
    run: Run, engine: AsyncEngine, redis: Redis, query: Query, suspected: Suspected
) -> None:
    async with locked(engine, OTHERS):
        aborted, handed_back = await suspected(Neighbour(lock=OTHERS), Neighbour(lock=OTHERS))
        worker = await run()
        for job_id in (aborted, handed_back):
            await worker.wait_for("began", job_id=job_id)
        await redis.zadd("arq:abort", {aborted: 1})
        await worker.wait_for("cancelled", job_id=aborted)
        assert await worker.stop() == 0
    assert [tuple(row) for row in await query("select id, status from worker.run")] == [(aborted, "cancelled")]
    assert await redis.exists(f"arq:in-progress:{handed_back}") == 0
    [claim] = await Claims(redis, timedelta(seconds=15)).take(["arq:queue"], 5, "me")
    assert (claim.job_id, claim.is_suspect) == (handed_back, True)


async def test_a_handlers_task_that_exits_has_failed_and_its_neighbour_is_done_in_the_same_process(
    run: Run, engine: AsyncEngine, query: Query, suspected: Suspected
) -> None:
    async with locked(engine, OTHERS):
        async with AsyncSession(engine) as session, session.begin():
            neighbour, parse = enqueue_many(session, [Neighbour(lock=OTHERS), Parse(line="--n x")])
        worker = await run()
        assert (await worker.wait_for("dead", job_id=parse))["error"] == "SystemExit"
    await worker.wait_for("completed", job_id=neighbour)
    assert [row.error for row in await query("select error from worker.attempt")] == ["SystemExit: 2"] * 2
    (alone,) = await suspected(Parse(line="--n x"))
    await worker.wait_for("dead", job_id=alone, timeout=60)
    assert {row.error for row in await query("select error from worker.attempt where id = :id", id=alone)} == {
        "SystemExit: 2"
    }
    assert await worker.stop() == 0
