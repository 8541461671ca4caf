"""Switches off what the promise stands on, one at a time, in a copy of the tree, and shows which test turns red.

`python -m tests.mutations [WORD…]`: those whose names hold a word; else all. Exits with 1 where a mutation stays green,
breaks more than what it is about, or can't be made any more.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600
RED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


class CannotMutateError(Exception):
    """The code has changed; the text says which mutation must follow it."""


def mutated(mutation: Mutation, source: str) -> str:
    """`source` with the mutation made. Raises CannotMutateError."""
    for before, after in mutation.changes:
        if source.count(before) != 1:
            raise CannotMutateError(
                f"The mutation {mutation.name!r} finds {before!r} {source.count(before)} times in {mutation.file}; "
                "bring tests/mutations/table.py up to date."
            )
        source = source.replace(before, after)
    return source


def main(words: Sequence[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    console = Console()
    is_well = bool(chosen)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        for part in "worker", "jobs", "tests", "bench":
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        for mutation in chosen:
            red = _red(tree, mutation)
            is_well = is_well and bool(red)
            console.print(f"[bold]{mutation.name}[/bold]: {red or '[red]nothing turns red[/red]'}")
    return 0 if is_well else 1


def _red(tree: Path, mutation: Mutation) -> str:
    """The first test that turned red; empty: none did. Raises CannotMutateError where `stays` turned red, too."""
    file = tree / mutation.file
    source = file.read_text()
    file.write_text(mutated(mutation, source))
    # From the copy's folder, whose packages come before the installed ones: `pythonpath` in pyproject.toml.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0"]
    command += [*mutation.tests, mutation.stays]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    finally:
        file.write_text(source)
    red = RED.findall(done.stdout)
    if mutation.stays in red:
        raise CannotMutateError(f"The mutation {mutation.name!r} breaks all; {mutation.stays} must stay green.")
    found = RED.search(done.stdout)
    if done.returncode not in {0, 1} or (done.returncode == 1) != bool(found):
        raise CannotMutateError(
            f"pytest didn't run under {mutation.name!r}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return found[1] if found else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
