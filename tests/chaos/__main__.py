"""python -m tests.chaos: break everything, and see that no job is lost and none is applied twice."""

import asyncio
import random
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from tests.chaos.report import as_json, show
from tests.chaos.run import Options, Progress, Report, play
from tests.chaos.stage import Secrets
from worker.event_loop import loop_factory

ORDERS, FAULTS, MINUTES, LEASE_S = 10_000, 100, 5.0, 3.0
JOBS_AN_ORDER = 3


def chaos(
    seed: Annotated[int | None, typer.Option(help="Repeats a run's faults and choices.", show_default="drawn")] = None,
    orders: Annotated[int, typer.Option(min=1, max=1_000_000, help="Orders to place.")] = ORDERS,
    faults: Annotated[int, typer.Option(min=0, max=10_000, help="Faults on the way.")] = FAULTS,
    minutes: Annotated[float, typer.Option(min=0.5, max=600, help="How long all of it may take, about.")] = MINUTES,
    lease: Annotated[float, typer.Option(min=1, max=60, help="WORKER_LEASE of the workers, in seconds.")] = LEASE_S,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON, and nothing else.")] = False,  # noqa: FBT002 - a flag
    keep: Annotated[bool, typer.Option("--keep", help="Keep the logs of a run that went well, too.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Run a shop on embedded servers while workers, servers and lines break, then have PostgreSQL's tables judged.

    Exit code 0 only if every claim holds: each committed enqueue applied exactly once, each rolled-back one never,
    stock exact, no run open, outbox empty.

    The seed decides what is broken, when, for how long, and what is ordered. What exactly a fault meets is a matter of
    microseconds, and can't be repeated: run a failing seed several times. More than 150 faults are a soak: those beyond
    are cheap ones, such as cut connections.
    """
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    options = Options(seed, orders, faults, minutes, lease)
    folder = Path(tempfile.mkdtemp(prefix="ratchet-chaos-"))
    dice = random.Random(f"secrets {seed}")
    secrets = Secrets(f"pw{dice.getrandbits(64):x}", f"tk{dice.getrandbits(64):x}")
    console = Console(stderr=json)
    report = _played(options, folder, secrets, console, quiet=json)
    if json:
        typer.echo(as_json(report))
    else:
        show(console, report)
    if report.holds and not keep:
        shutil.rmtree(folder)
    else:
        console.print(f"The logs are in {folder}")
    if not report.holds:
        again = f"make chaos ARGS='--seed {seed} --orders {orders} --faults {faults} --minutes {minutes:g}'"
        console.print(f"[bold red]Seed {seed} failed.[/] Again: {again}", soft_wrap=True)
        raise typer.Exit(1)


def _played(options: Options, folder: Path, secrets: Secrets, console: Console, *, quiet: bool) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(f"Seed {options.seed}; the logs go to {folder}")
    with Bars(*columns, console=console, disable=quiet) as bars:
        applied = bars.add_task("jobs applied, about", total=options.orders * JOBS_AN_ORDER)
        broken = bars.add_task("faults", total=options.faults)

        def tell(progress: Progress) -> None:
            bars.update(applied, completed=progress.applied)
            now = escape(", ".join(progress.current[:3])[:60])
            bars.update(broken, completed=progress.broken, description=f"faults: {now}" if now else "faults")

        async def played() -> Report:
            # SIGTERM as Ctrl-C: workers and servers must not outlive this.
            this = cast("asyncio.Task[Report]", asyncio.current_task())
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
            return await play(options, folder, secrets, tell)

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(played())


if __name__ == "__main__":
    typer.run(chaos)
