"""Rows of an input file that were refused: kept in the chunk's transaction, written to a file once, at the end."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from worker.bulk.copying import copy_rows
from worker.bulk.streaming import stream
from worker.models import Reject
from worker.run import current_run
from worker.shield import in_thread
from worker.whole import in_threads, written_whole

ROWS_AT_ONCE = 100
"""Of the rejects' file, in memory; a thread costs 50 us."""


async def keep_rejects(session: AsyncSession, rejects: list[tuple[int, str, bytes]]) -> None:
    """Keep (line number from 1, reason, the row's bytes) of the current run."""
    if rejects:
        run = current_run()
        columns = [Reject.id, Reject.enqueued_ms, Reject.line, Reject.reason, Reject.row]
        await copy_rows(session, Reject, columns, ((run.job_id, run.enqueued_ms, *reject) for reject in rejects))


async def write_rejects(session: AsyncSession, target: Path) -> int:
    """Write the current run's rejects to `target` as CSV (line, reason, row) and return how many there are.

    The file appears whole or not at all. It may be written again if the commit fails; it then holds the same rows.
    No file is written where there are no rejects. No other job waits for the disk: threads do.
    """
    run = current_run()
    mine = (Reject.id == run.job_id) & (Reject.enqueued_ms == run.enqueued_ms)
    count = (await session.execute(select(func.count()).select_from(Reject).where(mine))).scalar_one()
    if not count:
        return 0
    chosen = select(Reject.line, Reject.reason, Reject.row).where(mine).order_by(Reject.line, Reject.seq)
    async with in_threads(written_whole(target)) as file:
        await in_thread(file.write, b"line,reason,row\r\n")
        async for rows in stream(session, chosen, size=ROWS_AT_ONCE):
            await in_thread(_write, file, rows)
    return count


def _write(file: BinaryIO, rows: Iterable[Sequence[Any]]) -> None:
    file.write(as_csv(rows))


def as_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """The lines of the file for (line, reason, the row's bytes)."""
    text = StringIO(newline="")
    out = csv.writer(text)
    for line, reason, row in rows:
        out.writerow((line, reason, row.decode("utf-8", "backslashreplace").rstrip("\r\n")))
    return text.getvalue().encode()
