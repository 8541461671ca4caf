"""The ledger of a chunked job: what its run remembers from chunk to chunk, read and written under the run's lock."""

from datetime import timedelta
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.chunk import Step
from worker.driver import Driver
from worker.errors import Permanent, TransactionEnded
from worker.handler import ChunkedHandler
from worker.ledger import Identity
from worker.pace import Pace, Progress, asked_size, resumed_size
from worker.stored import as_jsonb, as_key

_READ = """
select cursor, result, chunks, done, total, chunk_size, row_seconds, rate, attempt, partitions,
    bounds
from worker.run
where id = $1 and enqueued_ms = $2
"""

_ADVANCE = text("""
update worker.run set status = 'yielded', cursor = cast(:cursor as jsonb), result = cast(:result as jsonb), attempt = 0,
    done = :done, total = :total, chunks = chunks + 1, chunk_size = :size, row_seconds = :row_seconds, rate = :rate,
    time_left_s = :time_left_s, next_at = null, error = null
where id = :id and enqueued_ms = :ms and pg_current_xact_id()::text = :transaction
""")


async def read(driver: Driver, run: Identity, handler: ChunkedHandler[Any, Any]) -> Progress:
    """What the run says, which this transaction holds the lock of."""
    row: Any = await driver.fetchrow(_READ, run.job_id, run.enqueued_ms)
    size = resumed_size(row["chunk_size"], handler.size, handler.sizes)
    pace = Pace(size, row["row_seconds"], row["rate"])
    size = asked_size(pace.size, row["attempt"], handler.sizes)
    return Progress(
        cursor=row["cursor"],
        counts=row["result"] or {},
        chunks=row["chunks"],
        done=row["done"],
        total=row["total"],
        pace=pace,
        size=size,
        partitions=row["partitions"],
        bounds=row["bounds"] and tuple(row["bounds"]),
    )


def key_behind(handler: ChunkedHandler[Any, Any], step: Step[Any], before: JsonValue) -> str:
    """The cursor that a step gives, as JSON; `before`: the one it was given.

    Raises Permanent for one that can't be read again, or that stands still.
    """
    if step.cursor is None:
        return "null"
    key = as_key(handler.codec, step.cursor, "cursor")
    if from_json(key) == before:
        raise Permanent(
            f"The chunked handler of {handler.job.job_name} returned the cursor that it was given, and would never "
            "end; return one behind its rows, or None."
        )
    return key


async def advance(
    connection: AsyncConnection,
    run: Identity,
    before: Progress,
    step: Step[Any],
    handler: ChunkedHandler[Any, Any],
    *,
    took: timedelta,
    transaction: str,
) -> str:
    """Move the cursor behind the chunk that commits with it. Failures count anew.

    Returns the result so far, as JSON. Raises TransactionEnded where the handler has ended the transaction, and
    Permanent for a cursor that can't be read again, or that stands still.
    """
    if before.bounds is not None and any(type(value) is int for value in step.result.values()):
        raise Permanent(
            f"The chunked handler of {run.name} has a whole number among its results, and partitions add those up; "
            "give it in `counts`, or as text."
        )
    counts = as_jsonb(step.added_to(before.counts), "result")  # which the counts are part of
    done, total = before.done + step.done, before.total if step.total is None else step.total
    pace = before.pace.after(step.asked or before.size, step.done, took - step.apart, handler.sizes)
    chunk = {
        "cursor": key_behind(handler, step, before.cursor),
        "result": counts,
        "done": done,
        "total": total,
        "size": pace.size,
        "row_seconds": pace.row_seconds,
        "rate": pace.rate,
        "time_left_s": pace.time_left_s(done, total),
    }
    moved = await connection.execute(_ADVANCE, {**run.key, "transaction": transaction, **chunk})
    if moved.rowcount == 0:
        raise TransactionEnded
    return counts
