"""Inside a contender's process: what it was given, and the commands that every contender answers to.

    python -P -m bench.peers.saq.peer fill noop 10000

Standard library only: it runs in the peers' environments. The last line on stdout is the answer, as JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from bench.tally import Tally

BATCH = 500
"""Jobs that a fill sends at a time."""


@dataclass(frozen=True)
class Given:
    """What the driver says in the environment."""

    database_url: str
    redis_url: str
    slots: int
    """Jobs at once."""
    variant: str
    """How this contender is set up, where there is more than one way."""
    tally: Tally

    @classmethod
    def from_environment(cls) -> "Given":
        path = os.environ.get("BENCH_TALLY")
        return cls(
            os.environ.get("DATABASE_URL", ""),
            os.environ.get("REDIS_URL", ""),
            int(os.environ.get("BENCH_SLOTS", "10")),
            os.environ.get("BENCH_VARIANT", ""),
            Tally(Path(path) if path else None, int(os.environ.get("BENCH_JOBS", "1"))),
        )


class Producer(Protocol):
    """A connected client. `job` is noop, kept, order or batch; `n` the job's number."""

    async def one(self, job: str, n: int) -> object:
        """Enqueue one job in the plainest way the library has."""
        ...

    async def many(self, job: str, numbers: Sequence[int]) -> object:
        """Enqueue these in the library's quickest way."""
        ...


Connect = Callable[[Given], AbstractAsyncContextManager[Producer]]
Work = Callable[[Given], Coroutine[Any, Any, object]]
Setup = Callable[[Given], Coroutine[Any, Any, object]]


def main(
    run: Callable[[Coroutine[Any, Any, Any]], Any], connect: Connect, work: Work | None, setup: Setup | None = None
) -> None:
    """Do what the arguments ask for. `run` is uvloop's, in every contender that can have it."""
    given = Given.from_environment()
    command, *arguments = sys.argv[1:]
    if command == "work" and work:
        run(work(given))
    elif command == "setup" and setup:
        run(setup(given))
    else:
        job, *numbers = arguments
        print(json.dumps(run(_produce(connect(given), command, job, [int(number) for number in numbers]))))


async def _produce(
    connection: AbstractAsyncContextManager[Producer], command: str, job: str, numbers: list[int]
) -> dict[str, object]:
    async with connection as producer:
        match command, numbers:
            case "fill", [jobs]:
                return {"seconds": await _in_bulk(producer, job, jobs, BATCH)}
            case "bulk", [jobs, size]:
                await producer.many(job, range(size))  # connects, and compiles what there is to compile
                return {"seconds": await _in_bulk(producer, job, jobs, size)}
            case "each", [jobs]:
                await producer.one(job, 0)
                began = monotonic()
                for n in range(jobs):
                    await producer.one(job, n)
                return {"seconds": monotonic() - began}
            case "pace", [jobs, every_ms]:
                return {"sent": await _at_a_pace(producer, job, jobs, every_ms / 1000)}
            case _:
                raise SystemExit(f"{command} {job} {numbers} is no command; see bench/inside.py.")


async def _in_bulk(producer: Producer, job: str, jobs: int, size: int) -> float:
    began = monotonic()
    for first in range(0, jobs, size):
        await producer.many(job, range(first, min(first + size, jobs)))
    return monotonic() - began


async def _at_a_pace(producer: Producer, job: str, jobs: int, every_s: float) -> list[float]:
    """Jobs 1 … jobs, one at a time. Returns when each was sent: `one`'s own answer if it has one, else before the call.

    Job 0 was sent before, to see that the worker is there.
    """
    sent: list[float] = []
    for n in range(1, jobs + 1):
        await asyncio.sleep(every_s)
        before = monotonic()
        told = await producer.one(job, n)
        sent.append(told if isinstance(told, float) else before)
    await asyncio.sleep(every_s)  # to end takes a client 20 ms of a processor, which the last job must not wait for
    return sent
