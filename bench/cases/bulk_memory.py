"""The most memory that a worker ever had, after few rows and after fifty times as many: import and export."""

import asyncio
import time
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from bench.case import Bench
from bench.contenders import OURS
from bench.drive import new_tally, working
from bench.results import CaseResult, Comparison, Figure, Run, Spread, Target
from bench.users import DATABASE, database
from jobs.users.contracts import ExportUsers, ImportUsers
from worker.database import create_engine
from worker.job import Job
from worker.outbox import enqueue

FEW, MANY = 100_000, 5_000_000
TIMEOUT_S = 1_200.0
"""For one job; the whole case takes some minutes."""
LOOK_EVERY_S = 0.1
KINDS = ("csv", "ndjson", "parquet")


def run(bench: Bench, result: CaseResult) -> None:
    few, many = (rows * min(bench.jobs, 10_000) // 10_000 for rows in (FEW, MANY))
    peaks: dict[str, dict[int, Run]] = {}
    for rows in (few, many):
        with database(bench.servers) as url:
            write_input(bench.servers.folder / "input.csv", rows)
            for name, job in jobs():
                peaks.setdefault(name, {})[rows] = peak = peak_of(bench, url, job, rows)
                bench.say(f"  {name}, {rows:,} rows: {peak.value or 0:,.0f} MB {peak.spoilt}")
    for name, by_rows in peaks.items():
        for rows, peak in by_rows.items():
            spread = Spread.of([peak.value] if peak.counts and peak.value else [])
            result.figures.append(
                Figure(f"{name}, {rows:,} rows", "peak memory", "MB", spread, (peak.spoilt,) if peak.spoilt else ())
            )
        low, high = by_rows[few], by_rows[many]
        both = low.counts and high.counts and low.value and high.value
        growth = Spread.of([high.value / low.value] if both and low.value and high.value else [])
        result.comparisons.append(Comparison(f"{name}: {many:,} ÷ {few:,} rows", growth, Target(at_most=1.1)))
    result.notes.append("Peak: VmHWM of a fresh `worker run` for each, which includes what it needs to start.")


def jobs() -> list[tuple[str, Job]]:
    """The import first: the exports are of what it brought."""
    exports = [
        (f"export, {kind}", ExportUsers.model_validate({"path": f"output.{kind}", "format": kind})) for kind in KINDS
    ]
    return [("import", ImportUsers(path="input.csv")), *exports]


def write_input(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("email,name\n")
        file.writelines(f"user{number}@example.com,User {number}\n" for number in range(rows))


def peak_of(bench: Bench, url: str, job: Job, rows: int) -> Run:
    """Of a worker that has done this one job (MB)."""
    servers = bench.servers
    servers.redis.flushall()
    settings = {"DATABASE_URL": url, "WORKER_APP": "jobs.app:app", "WORKER_FILES_DIR": str(servers.folder)}
    tally, _ = new_tally(servers, 1)
    with working(servers, OURS.but(settings=settings), tally, 1, slots=2, job="noop") as (worker,):
        job_id = asyncio.run(enqueued(url, job))
        deadline = time.monotonic() + TIMEOUT_S
        outcome = ""
        while not outcome:
            if time.monotonic() > deadline or worker.process.poll() is not None:
                return Run(None, f"{job.job_name} didn't end in {TIMEOUT_S:,.0f} s; {worker.last_words()}")
            time.sleep(LOOK_EVERY_S)
            found: Any = servers.value(
                f"select status || ': ' || coalesce(error, result ->> 'rows', result ->> 'inserted', '') "  # noqa: S608
                f"from worker.run where id = '{job_id}' and status in ('completed', 'dead')",
                DATABASE,
            )
            outcome = found or ""
        peak = worker.peak_mb()
    return Run(peak, "" if outcome == f"completed: {rows}" else f"{outcome[:200]} where {rows:,} rows were expected")


async def enqueued(url: str, job: Job) -> str:
    engine = create_engine(url, pool_size=1)
    async with AsyncSession(engine) as session, session.begin():
        job_id = enqueue(session, job)
    await engine.dispose()
    return job_id
