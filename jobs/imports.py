"""What the imports have in common: the next rows of the file, and the end of a chunk."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from jobs.csv_input import Position, Reader
from jobs.csv_rows import Row
from jobs.files import Files
from jobs.read_ahead import Check, Checked, ReadAhead
from worker.chunk import Chunk, Step
from worker.rejects import keep_rejects, write_rejects
from worker.run import current_run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Input:
    """The file of one import."""

    files: Files
    path: str
    header: tuple[str, ...]
    together: int | None = None
    """The column whose adjacent equal values one chunk holds."""

    async def read(self, chunk: Chunk[Position], check: Check[T]) -> Checked[T]:
        """What `check` says of the chunk's rows; it is called in a thread.

        Raises Permanent for a file that is missing, unreadable, changed or of another header.
        """
        ahead: ReadAhead[T] | None = chunk.memory.recall(ReadAhead)  # pyright: ignore[reportUnknownVariableType]
        if ahead is None or ahead.position != chunk.cursor:
            source = self.files.existing(self.path)
            started = time.monotonic()
            reader = await asyncio.to_thread(self._open, source, chunk.cursor)
            ahead = ReadAhead(reader, check, timedelta(seconds=time.monotonic() - started))
            chunk.memory.keep(ahead)
        return await ahead.next(chunk.size)

    def _open(self, source: Path, start: Position | None) -> Reader:
        return Reader(source, self.header, start, together=self.together, max_unpacked=self.files.max_unpacked)

    async def step(
        self,
        chunk: Chunk[Position],
        session: AsyncSession,
        read: Checked[T],
        rejects: Sequence[tuple[Row, str]],
        *,
        inserted: int,
    ) -> Step[Position]:
        """Keep the rejects, each with its reason, and end the chunk; with the last one the rejects' file is written.

        Every row is read, and is inserted, updated or rejected.
        """
        await keep_rejects(session, [(row.line, reason, row.raw) for row, reason in rejects])
        rejected, updated = len(rejects), read.read - len(rejects) - inserted
        counts = {"read": read.read, "inserted": inserted, "updated": updated, "rejected": rejected}
        result = {} if read.next else {"rejects_path": await self._write_rejects(session)}
        return chunk.step(
            read.next,
            done=read.read,
            total=read.in_all,
            counts=counts,
            result=result,
            asked=read.asked,
            apart=read.opening,
        )

    async def _write_rejects(self, session: AsyncSession) -> str | None:
        """Write this run's rejects beside the input, and return where. None: there are none."""
        source = self.files.existing(self.path)
        run = current_run()
        tag = hashlib.sha256(f"{run.job_id}:{run.enqueued_ms}".encode()).hexdigest()[:8]
        # Each run's own, and the same one if it is written again.
        target = source.with_name(f"{source.stem[:50]}.rejects-{tag}.csv")
        return self.files.relative(target) if await write_rejects(session, target) else None
