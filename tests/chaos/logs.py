"""What the workers wrote: figures, and what may not stand there."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXPLAINED = ("DiskFullError",)
"""What the chaos itself has PostgreSQL answer; whoever runs a real one wants to be told."""


@dataclass(slots=True)
class Told:
    """What the logs of one run say."""

    redelivered: int = 0
    """Attempts beyond the first of each job: delivered again, or failed."""
    events: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    """What the runtime met and nobody expected."""
    deaths: list[str] = field(default_factory=list[str])
    """Processes that a supervisor lost, and nobody had killed them."""


def read(folder: Path) -> Told:
    """All logs of a run."""
    told = Told()
    begun = Counter[str]()
    for log in sorted(folder.glob("worker-*.log")):
        for line in _lines(log):
            event = str(line.get("event", ""))
            told.events[event] += 1
            if event == "began":
                begun.update(line.get("ids", ()))
            elif line.get("level") in {"error", "critical"} and event != "dead":
                if any(name in line.get("exception", "") for name in EXPLAINED):
                    continue
                told.faults.append(f"{log.stem}: {json.dumps(line)[:2000]}")
            elif event == "process_died" and line.get("signal") != "SIGKILL":
                told.deaths.append(f"{log.stem}: {json.dumps(line)}")
    told.redelivered = begun.total() - len(begun)
    return told


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    """What is no JSON is a line with the event "text" and the level "error", but for a line that a kill cut short."""
    for line in log.read_text(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            if not line.startswith("{"):
                yield {"event": "text", "level": "error", "text": line}


def leaks(folder: Path, secrets: Sequence[str]) -> list[str]:
    """Where any of `secrets` stands in a file below `folder`: file and line, never the secret itself."""
    found: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found += [f"{path.name}:{number}" for secret in secrets if secret.encode() in line]
    return found
