"""python -m bench: ours and the peers' in one run, case by case."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.case import Bench
from bench.cases.table import CASES
from bench.contenders import ENVIRONMENTS, POSTGRES_PEERS
from bench.drive import prepare
from bench.plots import draw
from bench.report import show, write
from bench.results import CaseResult
from bench.servers import Servers

WHOLE, PARTIAL = Path("bench/results.json"), Path(".bench/results.json")
ROUNDS, JOBS = 3, 10_000
QUICK_ROUNDS, QUICK_JOBS = 1, 3_000

NAMES = [case.name for case in CASES]


def bench(
    cases: Annotated[str, typer.Option(help=f"Which, by commas: {', '.join(NAMES)}.", show_default="all of them")] = "",
    rounds: Annotated[
        int, typer.Option(min=1, help="Blocks a case. Each has every contender once, and ours between them.")
    ] = ROUNDS,
    jobs: Annotated[
        int, typer.Option(min=500, help="No-ops a run of ours; the slower contenders get a share, other cases too.")
    ] = JOBS,
    quick: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--quick", help=f"{QUICK_ROUNDS} block of {QUICK_JOBS} jobs: does it work, and roughly how.")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            help="Where the results go, and the plots beside them.",
            show_default=f"{WHOLE}, which the README shows; for some cases or --quick {PARTIAL}",
        ),
    ] = None,
) -> None:
    """Measure Ratchet against its peers and a plain loop, on embedded servers, and say which targets are reached.

    A figure is the median of its runs; a ratio is taken within each block, and its median over the blocks is given with
    the least and the greatest. A run that lost, doubled or failed a job is shown and doesn't count. Nothing is worth
    reading while something else uses the processors. See bench/README.md.
    """
    console = Console()
    chosen = [name.strip() for name in cases.split(",") if name.strip()] or NAMES
    if unknown := [name for name in chosen if name not in NAMES]:
        raise typer.BadParameter(f"there is no case {', '.join(unknown)}; choose from {', '.join(NAMES)}.")
    if quick:
        rounds, jobs = min(rounds, QUICK_ROUNDS), min(jobs, QUICK_JOBS)
    path = json or (PARTIAL if quick or cases else WHOLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    results: list[CaseResult] = []
    with Servers() as servers:
        prepare(servers, POSTGRES_PEERS)
        context = Bench(servers, rounds, jobs, lambda line: console.print(line, style="dim", markup=False))
        about = {"rounds": rounds, "jobs": jobs, "machine": machine(), "versions": {**servers.versions(), **versions()}}
        for case in CASES:
            if case.name not in chosen:
                continue
            console.rule(f"{case.name}: {case.question}", align="left")
            result = CaseResult(case.name, case.question)
            case.run(context, result)
            results.append(result)
            show(console, result)
            write(path, about, results)
    draw(path.parent, results)
    console.print(f"{path} has it all; it took {time.monotonic() - began:,.0f} s.")


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "system": platform.system(), "processor": platform.machine()}


def versions() -> dict[str, str]:
    """Of Python, and of each peer that is installed."""
    found = {"Python": platform.python_version()}
    for folder in sorted(ENVIRONMENTS.glob("*")):
        code = f"from importlib.metadata import version; print(version({folder.name!r}))"
        done = subprocess.run(
            [folder / "bin" / "python", "-c", code], capture_output=True, text=True, check=False, timeout=20
        )
        found[folder.name] = done.stdout.strip()
    return found


if __name__ == "__main__":
    typer.run(bench)
