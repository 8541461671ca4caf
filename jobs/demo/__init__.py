"""`worker demo`: a shop, a producer, two workers, one of which is killed; and what must hold in the end."""

import asyncio
import csv
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from arq.connections import ArqRedis
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from jobs.app import MIGRATIONS
from jobs.demo import crew, judge, shop
from jobs.demo.report import jobs_table, verdicts_table
from jobs.orders.contracts import ImportOrders
from jobs.products.models import Product
from jobs.users.contracts import ImportUsers
from worker.broker import connect_broker
from worker.database import create_engine
from worker.dev import EmbeddedPostgres, EmbeddedValkey
from worker.job import Job
from worker.migrate import migrate
from worker.models import Run
from worker.outbox import enqueue

LOOK_EVERY_S = 0.1
KILL_AFTER = 0.15
"""The share of the orders that are placed when a worker is killed."""
TAKEOVER_S = 20
GIVE_UP_S = 120


@dataclass(frozen=True, slots=True)
class Takeover:
    """What became of the killed worker's jobs."""

    jobs: int
    seconds: float


class DemoError(Exception):
    """It could not be played to its end."""


def main(*, users_csv: Path | None, orders_csv: Path | None, orders: int) -> int:
    """Run the demo; 0 only if every invariant holds. Without the files it makes its own shop, the same each time."""
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-demo-")))
        with console.status("Starting PostgreSQL and Valkey"):
            postgres = stack.enter_context(EmbeddedPostgres())
            valkey = stack.enter_context(EmbeddedValkey())
            migrate(postgres.url, (MIGRATIONS,))
        console.print(f"PostgreSQL  psql '{postgres.url}'")
        console.print(f"Valkey      {valkey.url}")
        _lay_out(folder, users_csv, orders_csv)
        environment = {"DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "WORKER_FILES_DIR": str(folder)}
        try:
            return asyncio.run(_demonstrate(console, Stage(environment, folder, orders)))
        except DemoError as error:
            console.print(f"[bold red]The demo ended early:[/] {error}")
            return 1


def _lay_out(folder: Path, users_csv: Path | None, orders_csv: Path | None) -> None:
    """The two files where the workers may read them."""
    for given, write, name in (
        (users_csv, shop.write_users, "users.csv"),
        (orders_csv, shop.write_orders, "orders.csv"),
    ):
        if given:
            shutil.copyfile(given, folder / name)
        else:
            write(folder / name)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it is played."""

    environment: Mapping[str, str]
    folder: Path
    orders: int


async def _demonstrate(console: Console, stage: Stage) -> int:
    engine = create_engine(stage.environment["DATABASE_URL"], pool_size=3, application="ratchet demo")
    redis = connect_broker(stage.environment["REDIS_URL"])
    members = [crew.hire(stage.environment, stage.folder / f"worker-{number}.log") for number in (1, 2)]
    articles = shop.assortment(stage.orders)
    try:
        with Progress(console=console) as progress:
            await _import(progress, engine, ImportUsers(path="users.csv"))
            await _import(progress, engine, ImportOrders(path="orders.csv"))
            await _stock(engine, articles)
            began = time.monotonic()
            enqueued, takeover = await _trade(progress, engine, redis, members, stage)
            seconds = time.monotonic() - began
        verdicts = [
            await judge.judge_import(engine, *_expected(stage.folder / "orders.csv")),
            *await judge.judge(engine, redis, articles, stage.orders),
            judge.Verdict(
                f"the killed worker's jobs went on elsewhere within {TAKEOVER_S} s",
                takeover is not None and takeover.jobs > 0 and takeover.seconds <= TAKEOVER_S,
                f"{takeover.jobs} jobs, {takeover.seconds:.1f} s" if takeover else "they did not",
            ),
        ]
        console.print(jobs_table(await judge.figures(engine), enqueued, crew.duplicates(members), seconds))
        console.print(verdicts_table(verdicts))
        return 0 if all(verdict.holds for verdict in verdicts) else 1
    finally:
        for member in members:
            member.stop()
        await redis.aclose()
        await engine.dispose()


async def _import(progress: Progress, engine: AsyncEngine, job: Job) -> None:
    """Have a file imported, and show how far it is."""
    async with AsyncSession(engine) as session, session.begin():
        job_id = enqueue(session, job)
    bar = progress.add_task(job.job_name, total=None)
    deadline = time.monotonic() + GIVE_UP_S
    while True:
        async with AsyncSession(engine) as session:
            run = (await session.scalars(select(Run).where(Run.id == job_id))).one_or_none()
        if run is not None:
            progress.update(bar, completed=run.done, total=run.total)
            if run.finished_at is not None:
                progress.update(bar, total=run.done, completed=run.done)
                if run.status != "completed":
                    raise DemoError(f"{job.job_name} ended as {run.status}: {run.error}")
                return
        if time.monotonic() > deadline:
            raise DemoError(f"{job.job_name} wasn't done after {GIVE_UP_S} s.")
        await asyncio.sleep(LOOK_EVERY_S)


async def _stock(engine: AsyncEngine, articles: Sequence[shop.Article]) -> None:
    async with engine.begin() as connection:
        await connection.execute(insert(Product), [asdict(article) for article in articles])


async def _trade(
    progress: Progress, engine: AsyncEngine, redis: ArqRedis, members: list[crew.Member], stage: Stage
) -> tuple[Counter[str], Takeover | None]:
    """Let the producer work, kill a worker on the way, and wait until all is done."""
    producer = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jobs.demo.producer", "--orders", str(stage.orders),
        env={**os.environ, **stage.environment}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = asyncio.create_task(producer.communicate())
    bar = progress.add_task("orders placed", total=stage.orders)
    held: set[str] = set()
    killed_at, takeover = 0.0, None
    deadline = time.monotonic() + GIVE_UP_S
    while not (said.done() and takeover and await judge.unfinished(engine, redis) == 0):
        placed = await judge.settled(engine)
        progress.update(bar, completed=placed)
        if not held and placed >= KILL_AFTER * stage.orders:
            held = await crew.kill_at_work(members[0], redis) or set()
            killed_at = time.monotonic()
            if held:
                progress.console.print(f"killed worker 1 (SIGKILL) after {placed:,} orders; it held {len(held)} jobs")
        if held and takeover is None and await judge.are_final(engine, held):
            takeover = Takeover(len(held), time.monotonic() - killed_at)
            progress.console.print(f"its {takeover.jobs} jobs were done elsewhere {takeover.seconds:.1f} s later")
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(LOOK_EVERY_S)
    if not said.done():
        producer.kill()
    out, _ = await said
    return Counter(json.loads(out or b"{}")), takeover


def _expected(path: Path) -> tuple[int, int]:
    """How many orders a file of orders has, and their sum in cents."""
    references: set[str] = set()
    cents = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            references.add(row["reference"])
            cents += int(Decimal(row["amount"]) * 100)
    return len(references), cents
