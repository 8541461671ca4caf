"""Many rows out: users.export against psql's own copy, and `stream` against asyncpg's own cursor."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from bench.case import Bench
from bench.contenders import ROOT
from bench.results import CaseResult, Comparison, Run, Target, figures, ratio
from bench.servers import client
from bench.users import DATABASE, database

USERS_A_JOB = 100
"""A million where the bench has ten thousand jobs."""
TIMEOUT_S = 300
PSQL = "psql \\copy … to csv"
EXPORTS = {"csv": 0.7, "ndjson": 0.3, "parquet": 0.15}
"""What each must reach of psql's rate."""
CURSOR, STREAM = "asyncpg cursor", "stream"
READERS = {
    CURSOR: ("cursor", 1.0),
    STREAM: ("stream", 1.0),
    "Core stream": ("core", 1.0),
    "ORM partitions": ("partitions", 0.2),
    "ORM one by one": ("one_by_one", 0.1),
}
"""How bench/reading.py calls it, and its share of the rows."""
USERS = "select id, email, name, is_active, last_seen_at, created_at from users order by id"
TRUTH = "select array[count(*), sum(id)]::bigint[] from (select id from users order by id limit {limit}) as read"


def run(bench: Bench, result: CaseResult) -> None:
    rows = bench.jobs * USERS_A_JOB
    with database(bench.servers, rows) as url:
        psql = client("psql")
        if psql is None:
            result.notes.append("No psql: the embedded PostgreSQL's package has none.")
        else:
            measures: dict[str, Callable[[], Run]] = {PSQL: lambda: copying(bench, psql, url, rows)}
            measures |= {f"export, {kind}": exporting(bench, kind, url, rows) for kind in EXPORTS}
            blocks = bench.contest(PSQL, measures)
            result.figures += figures(blocks, f"{rows:,} users", "rows/s")
            result.comparisons += [
                Comparison(f"export, {kind} ÷ {PSQL}", ratio(blocks, f"export, {kind}", PSQL), Target(at_least=least))
                for kind, least in EXPORTS.items()
            ]
        blocks = bench.contest(
            CURSOR, {name: reading(bench, how, int(rows * share), url) for name, (how, share) in READERS.items()}
        )
        result.figures += figures(blocks, "rows to a handler", "rows/s")
        result.comparisons.append(
            Comparison(f"{STREAM} ÷ {CURSOR}", ratio(blocks, STREAM, CURSOR), Target(at_least=0.8))
        )
    result.notes.append("psql is timed by its own \\timing; it syncs no file, where the export does.")


def copying(bench: Bench, psql: Path, url: str, rows: int) -> Run:
    target = bench.servers.folder / "psql.csv"
    copy = f"\\copy ({USERS}) to '{target}' csv header"
    done = subprocess.run(
        [str(psql), "-XAt", url, "-c", "\\timing on", "-c", copy],
        capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    took = re.search(r"^Time: ([\d.]+) ms", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not took:
        return Run(None, f"psql failed: {done.stderr.strip()[-200:]}")
    return Run(rows / float(took[1]) * 1000, fault(bench, *content(target, "csv")))


def exporting(bench: Bench, kind: str, url: str, rows: int) -> Callable[[], Run]:
    def measure() -> Run:
        took = inside("export", kind, bench.servers.folder, url)
        return Run(rows / took["seconds"], fault(bench, *content(bench.servers.folder / f"users.{kind}", kind)))

    return measure


def reading(bench: Bench, how: str, rows: int, url: str) -> Callable[[], Run]:
    def measure() -> Run:
        took = inside(how, rows, url)
        return Run(rows / took["seconds"], fault(bench, took["rows"], took["ids"], rows))

    return measure


def inside(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.reading", *map(str, arguments)],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise OSError(f"bench.reading failed: {' | '.join(done.stderr.strip().splitlines()[-3:])}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def content(path: Path, kind: str) -> tuple[int, int]:
    """How many users a file has, and the sum of their ids. No name of the bench's users has a line break."""
    if kind == "parquet":
        parquet: Any = importlib.import_module("pyarrow.parquet")  # it has no types
        ids = parquet.read_table(path, columns=["id"])["id"].to_pylist()
    else:
        with path.open("rb") as file:
            if kind == "csv":
                next(file)
                ids = [int(line.partition(b",")[0]) for line in file]
            else:
                ids = [from_json(line)["id"] for line in file]
    path.unlink()
    return len(ids), sum(ids)


def fault(bench: Bench, count: int, ids: int, rows: int | None = None) -> str:
    """Why a run doesn't count, or nothing."""
    true = bench.servers.value(TRUTH.format(limit=rows or "all"), DATABASE)
    return "" if [count, ids] == true else f"{count:,} users with ids {ids:,} where {true} were expected"
