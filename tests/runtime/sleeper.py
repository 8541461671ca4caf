"""A worker that a test stops with SIGSTOP: its handler works, says so, and waits. Run as a script."""

import asyncio
import os
import sys

from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Note, effect
from worker.database import create_engine
from worker.delivery import Delivery, NoHold
from worker.handler import Handler


async def main(url: str, job_id: str, message: str) -> None:
    async def waiting(job: Note, session: AsyncSession) -> str:
        await effect(session, "the sleeper's")
        print("works", flush=True)  # noqa: T201 - the test reads it
        await asyncio.to_thread(sys.stdin.readline)
        return "slept"

    bench = Bench(create_engine(url, pool_size=2, pgbouncer="WORKER_PGBOUNCER" in os.environ))
    delivery = Delivery(job_id, "arq:queue", message.encode(), NoHold(), 0, 0)
    print(await bench.run(Handler(Note, waiting), delivery), flush=True)  # noqa: T201 - the same
    await bench.close()


asyncio.run(main(*sys.argv[1:]))
