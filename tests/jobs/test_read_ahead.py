"""The next rows of an import are read while the last ones are worked on, one chunk ahead and no further."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from jobs.csv_input import Reader
from jobs.csv_rows import Row
from jobs.read_ahead import ReadAhead

HEADER = ("email", "name")


class Checking:
    """Notes the lines that it is given; the `number`-th time it waits until it may go on."""

    def __init__(self, number: int) -> None:
        self.calls: list[list[int]] = []
        self.begun, self.may_go_on = Event(), Event()
        self._number = number

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        self.calls.append([row.line for row in rows])
        if len(self.calls) == self._number:
            self.begun.set()
            assert self.may_go_on.wait(10)
        return [row.fields[1] for row in rows]


def opened(path: Path) -> Reader:
    path.write_text("email,name\n" + "".join(f"{n}@x,N{n}\n" for n in range(1, 10)))
    return Reader(path, HEADER, None, max_unpacked=1_000)


async def test_the_next_chunk_is_read_while_this_one_is_worked_on(tmp_path: Path) -> None:
    check = Checking(2)
    ahead = ReadAhead(opened(tmp_path / "users.csv"), check)
    first = await ahead.next(3)
    assert (first.checked, first.next) == (["N1", "N2", "N3"], ahead.position)
    given = first.then_read_on(first.checked)
    assert next(given) == "N1"
    assert len(check.calls) == 1  # not yet
    assert list(given) == ["N2", "N3"]
    first.read_on()  # again: it is one chunk all the same
    await asyncio.to_thread(check.begun.wait, 10)  # nobody has asked for the second
    check.may_go_on.set()
    second = await ahead.next(1)  # it had begun before the size was known
    second.read_on()
    third = await ahead.next(2)  # this one has the size that was the newest when it began
    third.read_on()
    fourth = await ahead.next(2)
    assert [chunk.checked for chunk in (second, third, fourth)] == [["N4", "N5", "N6"], ["N7"], ["N8", "N9"]]
    assert [chunk.asked for chunk in (first, second, third, fourth)] == [3, 3, 1, 2]
    ahead.close()


async def test_the_first_chunk_tells_how_long_it_took_to_open_the_file(tmp_path: Path) -> None:
    opening = timedelta(minutes=1)
    ahead = ReadAhead(opened(tmp_path / "users.csv"), Checking(0), opening)
    assert [(await ahead.next(3)).opening for _ in range(2)] == [opening, timedelta(0)]
    ahead.close()


async def test_one_that_is_closed_closes_its_file_when_its_thread_is_done(tmp_path: Path) -> None:
    check, reader = Checking(2), opened(tmp_path / "users.csv")
    ahead = ReadAhead(reader, check)
    (await ahead.next(3)).read_on()
    await asyncio.to_thread(check.begun.wait, 10)
    ahead.close()
    assert not reader.is_closed
    check.may_go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)  # the loop is told of the thread's end
    assert reader.is_closed


async def test_one_whose_caller_is_cancelled_closes_its_file_when_its_thread_is_done(tmp_path: Path) -> None:
    check, reader = Checking(1), opened(tmp_path / "users.csv")
    ahead = ReadAhead(reader, check)
    asking = asyncio.create_task(ahead.next(3))
    await asyncio.to_thread(check.begun.wait, 10)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    ahead.close()
    assert not reader.is_closed
    check.may_go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)
    assert reader.is_closed


async def test_a_fault_of_the_next_chunk_is_raised_when_it_is_asked_for(tmp_path: Path) -> None:
    path, check = tmp_path / "users.csv", Checking(1)
    ahead = ReadAhead(opened(path), check)
    asking = asyncio.create_task(ahead.next(3))
    await asyncio.to_thread(check.begun.wait, 10)
    path.write_text("email,name\nanother\n")
    check.may_go_on.set()
    assert (await asking).checked == ["N1", "N2", "N3"]
    with pytest.raises(Exception, match="changed while it was imported, at line 5"):
        await ahead.next(3)
    ahead.close()
