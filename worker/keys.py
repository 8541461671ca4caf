"""For handlers that go through a table by its key: which rows a chunk may take, and how to split the key's range."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Integer, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from worker.chunk import Chunk

C = TypeVar("C")


def within(key: InstrumentedAttribute[C], chunk: Chunk[C]) -> list[ColumnElement[bool]]:
    """Conditions for `where`: what comes after the cursor and belongs to the chunk's partition, if it has one."""
    after = chunk.lower if chunk.cursor is None else chunk.cursor
    conditions = [] if after is None else [key > after]
    return conditions if chunk.upper is None else [*conditions, key <= chunk.upper]


def evenly(key: InstrumentedAttribute[int]) -> Callable[[Any, AsyncSession, int], Awaitable[Sequence[int]]]:
    """For `ChunkedHandler(…, split=evenly(User.id))`: parts of equal width between the least and the greatest key.

    Two look-ups in the key's index. Keys that crowd together make partitions of unequal work.

    Raises ValueError for a key that isn't a whole number.
    """
    if not isinstance(getattr(key.type, "impl_instance", key.type), Integer):  # the former of a TypeDecorator
        raise ValueError(  # noqa: TRY004 - it is no type of Python's
            f"evenly got {key}, of the type {key.type!r}; give a whole number, or split by a function of your own."
        )

    async def split(_job: Any, session: AsyncSession, partitions: int) -> Sequence[int]:
        extremes = (await session.execute(select(func.min(key), func.max(key)))).one()
        least, greatest = int(extremes[0] or 0), int(extremes[1] or 0)  # 0: there are no rows
        return bounds_between(least, greatest, partitions)

    return split


def bounds_between(least: int, greatest: int, partitions: int) -> list[int]:
    """Bounds of parts of equal width. Fewer than there might be, where there are fewer keys than partitions."""
    width = greatest - least + 1
    bounds = {least - 1 + width * number // partitions for number in range(1, partitions)}
    return sorted(bound for bound in bounds if least <= bound < greatest)
