"""A cancelled import stops within a chunk, and keeps what it has committed."""

from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.contracts import ImportUsers
from tests.bulk.app import ROWS_A_CHUNK
from tests.conftest import StartWorker
from tests.support.waiting import wait_until
from worker.cancel import Asked, cancel
from worker.outbox import enqueue

CHUNKS, COMMITTED = 6, 3
SETTINGS = {"WORKER_APP": "tests.bulk.app:app", "WORKER_POLL_DELAY": "0.02", "WORKER_RELAY_POLL": "0.2"}
HOLD = text("insert into users (email, name) values (:email, 'held')")
DONE = text("select status, done from worker.run where id = :id")
WAITING = text("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")


async def test_a_cancelled_import_stops_within_a_chunk_and_keeps_what_it_committed(
    engine: AsyncEngine, redis: Redis, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The fourth chunk waits for a row that somebody else inserts, and is cancelled meanwhile."""
    with (tmp_path / "users.csv").open("w") as file:
        file.write("email,name\n")
        file.writelines(f"user{n}@x,User {n}\n" for n in range(CHUNKS * ROWS_A_CHUNK))

    async def waits() -> bool:
        async with engine.connect() as connection:
            return bool((await connection.execute(WAITING)).scalar_one())

    async def run() -> tuple[str, int]:
        async with engine.connect() as connection:
            status, done = (await connection.execute(DONE, {"id": job_id})).one()
            return status, done

    async def is_cancelled() -> bool:
        return (await run())[0] == "cancelled"

    async with engine.connect() as holder:
        await holder.execute(HOLD, {"email": f"user{COMMITTED * ROWS_A_CHUNK}@x"})
        async with AsyncSession(engine) as session, session.begin():
            job_id = enqueue(session, ImportUsers(path="users.csv"))
        worker = await start_worker(**SETTINGS)
        await wait_until(waits, timeout=30)
        assert await cancel(engine, redis, job_id, ["arq:queue"]) == Asked(job_id, "users.import")
        await wait_until(is_cancelled, timeout=30)
        await holder.rollback()
    assert await worker.stop() == 0
    assert await run() == ("cancelled", COMMITTED * ROWS_A_CHUNK)
    async with engine.connect() as connection:
        stored = (await connection.execute(text("select count(*) from users"))).scalar_one()
    assert stored == COMMITTED * ROWS_A_CHUNK
