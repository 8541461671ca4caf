"""What is done in spite of a cancellation."""

import asyncio

import pytest

from worker.shield import answer_cancellation, is_cancelled, to_its_end


async def test_what_is_shielded_is_awaited_to_its_end_however_often_its_caller_is_cancelled() -> None:
    go = asyncio.Event()
    seen: list[bool] = []

    async def work() -> str:
        await go.wait()
        return "done"

    async def caller() -> str:
        result = await to_its_end(work())
        seen.append(is_cancelled())
        answer_cancellation()
        seen.append(is_cancelled())
        await asyncio.sleep(0)  # nothing of the cancellations is left
        return result

    task = asyncio.create_task(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    go.set()
    assert await task == "done"
    assert seen == [True, False]


async def test_what_it_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_its_end(fail())


async def test_its_own_cancellation_ends_the_caller_too() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await to_its_end(cancelled())
    assert not is_cancelled()


async def test_without_a_cancellation_there_is_nothing_to_answer() -> None:
    answer_cancellation()
    assert not is_cancelled()
