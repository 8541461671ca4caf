"""An import whose worker is killed again and again: every row is there once, and every count is exact."""

import os
import random
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.users.contracts import ImportUsers
from tests.conftest import StartWorker
from tests.support.waiting import wait_until
from worker.outbox import enqueue

ROWS = int(os.environ.get("RATCHET_IMPORT_ROWS", "45000"))
"""A million with RATCHET_IMPORT_ROWS=1000000, which takes too long for every run."""
KILLS = min(20, ROWS // 7_500)
"""Six, where it isn't the long run: each costs the start of a worker and of a child for what it left."""
SEED = 4
BAD_EVERY = 1_000
"""So many lines apart stand rows without an e-mail address."""
SETTINGS = {
    "WORKER_APP": "tests.bulk.app:app",
    "WORKER_LEASE": "1",
    "WORKER_POLL_DELAY": "0.02",
    "WORKER_RELAY_POLL": "0.2",
    "WORKER_SHUTDOWN_GRACE": "1",
}
BEYOND = text("select count(*) from worker.run where id = :id and done >= :aim")
FREE = text("select 1 from worker.run where id = :id for update skip locked")


async def test_an_import_survives_kills_with_every_row_once(
    engine: AsyncEngine, start_worker: StartWorker, tmp_path: Path
) -> None:
    with (tmp_path / "users.csv").open("w") as file:
        file.write("email,name\n")
        file.writelines(f"{'' if n % BAD_EVERY == 0 else f'user{n}@x'},User {n}\n" for n in range(ROWS))
    async with AsyncSession(engine) as session, session.begin():
        job_id = enqueue(session, ImportUsers(path="users.csv"))

    for aim in sorted(random.Random(SEED).sample(range(ROWS * 9 // 10), KILLS)):
        worker = await start_worker(**SETTINGS)

        async def is_there(aim: int = aim) -> bool:
            """Beyond `aim` rows, and in the middle of a chunk: the run is there and locked."""
            async with engine.connect() as connection:
                beyond = await connection.execute(BEYOND, {"id": job_id, "aim": aim})
                return bool(beyond.scalar_one()) and (await connection.execute(FREE, {"id": job_id})).first() is None

        await wait_until(is_there, timeout=90)
        await worker.kill()
    worker = await start_worker(**SETTINGS)

    async def is_final() -> bool:
        async with engine.connect() as connection:
            query = text("select status from worker.run where id = :id")
            return (await connection.execute(query, {"id": job_id})).scalar_one() in {"completed", "dead"}

    await wait_until(is_final, timeout=120)
    assert await worker.stop() == 0
    async with engine.connect() as connection:
        run = (await connection.execute(text("select * from worker.run where id = :id"), {"id": job_id})).one()
        stored = await connection.execute(text("select count(*), count(distinct email) from users"))
        rejected = await connection.execute(text("select count(*), count(distinct line) from worker.reject"))
    bad = -(-ROWS // BAD_EVERY)
    counts = {name: run.result[name] for name in ("read", "inserted", "updated", "rejected")}
    assert counts == {"read": ROWS, "inserted": ROWS - bad, "updated": 0, "rejected": bad}
    assert tuple(stored.one()) == (ROWS - bad, ROWS - bad)
    assert tuple(rejected.one()) == (bad, bad)
