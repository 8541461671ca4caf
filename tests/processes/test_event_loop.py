"""What ends a worker's event loop, and what doesn't."""

import asyncio
import signal
import sys
from importlib import import_module

import pytest

from worker.event_loop import Factory, run

LOOPS = pytest.mark.parametrize("factory", [None, import_module("uvloop").new_event_loop], ids=["asyncio", "uvloop"])


async def exits() -> None:
    sys.exit(2)


@LOOPS
def test_the_exit_of_a_task_is_its_awaiters_and_all_others_go_on(factory: Factory | None) -> None:
    told: list[str] = []

    async def neighbour(rings: asyncio.Event) -> None:
        await rings.wait()
        told.append("neighbour")

    async def main() -> None:
        rings = asyncio.Event()
        beside = asyncio.create_task(neighbour(rings))
        for _ in range(2):
            try:
                await asyncio.gather(exits(), asyncio.sleep(0))
            except SystemExit as error:
                told.append(f"exit {error.code}")
        rings.set()
        await beside

    run(main(), factory)
    assert told == ["exit 2", "exit 2", "neighbour"]


@LOOPS
def test_the_exit_of_the_process_itself_ends_it(factory: Factory | None) -> None:
    with pytest.raises(SystemExit) as ended:
        run(exits(), factory)
    assert ended.value.code == 2


@LOOPS
def test_ctrl_c_before_anybody_handles_it_ends_the_loop_in_order(factory: Factory | None) -> None:
    told: list[str] = []

    async def main() -> None:
        try:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            told.append("in order")

    with pytest.raises(asyncio.CancelledError):
        run(main(), factory)
    assert told == ["in order"]
