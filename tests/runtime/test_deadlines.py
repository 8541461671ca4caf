"""Deadlines of one length share a timer: each ends at its own time, whatever became of those before it."""

import asyncio
import time
from contextlib import suppress

from worker.deadline import Deadlines

SHORT_S = 0.05
LONG_S = 300.0


async def hang(deadlines: Deadlines, seconds: float, name: str, ended: list[str]) -> None:
    task = asyncio.current_task()
    assert task is not None
    deadline = deadlines.within(task, seconds)
    with suppress(asyncio.CancelledError), deadline:
        await asyncio.Event().wait()
    assert deadline.has_expired
    assert task.cancelling() == 0
    assert time.monotonic() >= deadline.at
    ended.append(name)


async def test_each_ends_at_its_own_time() -> None:
    deadlines, ended = Deadlines(), list[str]()
    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(hang(deadlines, SHORT_S, name, ended))
    assert ended == ["a", "b", "c"]


async def test_one_that_is_left_in_time_ends_nobody_and_the_next_is_not_forgotten() -> None:
    deadlines, ended = Deadlines(), list[str]()
    task = asyncio.current_task()
    assert task is not None
    with deadlines.within(task, SHORT_S) as left:
        hanging = asyncio.create_task(hang(deadlines, SHORT_S, "it", ended))
        await asyncio.sleep(0)
    await hanging
    assert not left.has_expired
    assert task.cancelling() == 0


async def test_a_long_one_holds_up_no_short_one() -> None:
    deadlines, ended = Deadlines(), list[str]()
    task = asyncio.current_task()
    assert task is not None
    with deadlines.within(task, LONG_S) as long:
        await asyncio.create_task(hang(deadlines, SHORT_S, "it", ended))
    assert not long.has_expired


def test_they_serve_one_loop_after_another() -> None:
    deadlines, ended = Deadlines(), list[str]()

    async def leave_in_time() -> None:
        task = asyncio.current_task()
        assert task is not None
        with deadlines.within(task, SHORT_S):
            pass

    asyncio.run(leave_in_time())
    asyncio.run(asyncio.wait_for(hang(deadlines, SHORT_S, "it", ended), 5))
