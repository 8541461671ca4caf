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
def test_a_task_that_interrupts_is_its_awaiters_affair_too(factory: Factory | None) -> None:
    told: list[str] = []

    async def interrupts() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, told.append, "signal")
        try:
            await asyncio.gather(interrupts(), asyncio.sleep(0))
        except KeyboardInterrupt:
            told.append("interrupt")
        await asyncio.sleep(0)

    run(main(), factory)
    assert told == ["interrupt"]


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

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a process of its own
    try:
        with pytest.raises(asyncio.CancelledError):
            run(main(), factory)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == ["in order"]
