"""A job that kills its process is Dead after three deaths of its own child, and its neighbours never notice."""

import asyncio
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.poison.app import Count, Neighbour, Once, Poison, Way
from tests.poison.conftest import Query, Run, Suspected
from tests.support.locks import locked
from tests.support.waiting import wait_until
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
    dead = await second.wait_for("dead", job_id=poison, timeout=60)
    assert dead["error"] == "ProcessDied"
    await second.wait_for("completed", count=99, timeout=60)

    assert [tuple(row) for row in await query(OF_STATUS)] == [
        ("neighbour", "completed", 99),
        ("poison", "dead", 1),
    ]
    assert [tuple(row) for row in await query("select count(*), count(distinct job_id) from effect")] == [(99, 99)]
    deaths = await query("select id, attempt, error, worker from worker.attempt order by seq")
    assert [(row.id, row.attempt) for row in deaths] == [(poison, 1), (poison, 2), (poison, 3)]
    assert all("ran this job alone, exited with 9" in row.error for row in deaths)
    assert {row.worker.rpartition(":")[2] for row in deaths} == {str(second.pid)}  # which has outlived them all
    assert await second.stop() == 0
