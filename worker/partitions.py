"""A chunked job in partitions: one run splits its key range, others go through the parts, and it completes with all.

The parent isn't told when a partition ends: it comes back every second and looks (docs/adr/0019). So nothing has to
be sent, and nothing can get lost, however a partition ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
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
from worker.outcome import Yielded
from worker.reporting.trace import CRON_HEADER
from worker.stored import as_jsonb, as_key
from worker.wire import Message, decode, encode

LOOK_AGAIN = timedelta(seconds=1)
CARRY_ON = "its partitions carry on"
NO_CHUNKS = "it is in partitions, and its handler here has no chunks"
"""Of a worker before or after the deploy that brought them: whole, it would do the work of all partitions."""


@dataclass(frozen=True, slots=True)
class Split:
    """The inner bounds of a job's partitions, in ascending order."""

    bounds: Sequence[Any]

    @classmethod
    def at(cls, bounds: Sequence[Any], handler: ChunkedHandler[Any, Any]) -> "Split":
        """Raises Permanent for bounds that would have a row worked on twice, or that are too many.

        How text is ordered the database's collation says, so its order isn't looked at.
        """
        given = f"The split of {handler.job.job_name} gave"
        if len(bounds) >= handler.partitions:
            raise Permanent(
                f"{given} {len(bounds)} bounds for {handler.partitions} partitions; give one less, at most."
            )
        for before, after in pairwise(bounds):
            if not isinstance(before, str) and not before < after:
                raise Permanent(f"{given} {before!r} before {after!r}; give bounds in strictly ascending order.")
        return cls(bounds)


_ADD_RUN = text("""
insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, parent_id, bounds)
values (:id, :ms, :name, :queue, 'waiting', true, :parent, cast(:bounds as jsonb))
""")
_TAKEN = text("select min(id) from worker.run where id = any(:ids) and enqueued_ms = :ms")
_ADD_ROW = text("""
insert into worker.outbox (id, enqueued_ms, name, queue, message) values (:id, :ms, :name, :queue, :message)
""")
_PART = text("""
update worker.run set status = 'yielded', partitions = :partitions, attempt = 0, chunks = chunks + 1, next_at = null,
    error = null
where id = :id and enqueued_ms = :ms and pg_current_xact_id()::text = :transaction
""")
_UNFINISHED = """
select exists (select from worker.run where parent_id = $1 and enqueued_ms = $2 and finished_at is null)
"""
_PARTS = text("""
select id, status, error, result, done, total from worker.run where parent_id = :id and enqueued_ms = :ms
order by length(id), id
""")
_SUM_UP = text("""
update worker.run set done = :done, total = :total, time_left_s = 0 where id = :id and enqueued_ms = :ms
""")


async def part(
    connection: AsyncConnection,
    run: Identity,
    split: Split,
    handler: ChunkedHandler[Any, Any],
    *,
    message: bytes,
    transaction: str,
) -> Yielded:
    """Make the partitions: their runs and their outbox rows, in the transaction that makes the parent wait.

    The first and the last are open-ended, so that no key is missed. Raises TransactionEnded, and Permanent where the
    id of one was chosen for another job, or a bound can't be read again.
    """
    inner = [from_json(as_key(handler.codec, bound, "bound")) for bound in split.bounds]
    shared = {"ms": run.enqueued_ms, "name": run.name, "queue": run.queue}
    sent = _without_check_in(message, run.enqueued_ms)
    parts = [
        {**shared, "id": f"{run.job_id}:{number}", "parent": run.job_id, "bounds": as_jsonb(list(bounds), "bounds")}
        for number, bounds in enumerate(pairwise([None, *inner, None]), 1)
    ]
    ids = [one["id"] for one in parts]
    taken = (await connection.execute(_TAKEN, {"ids": ids, "ms": run.enqueued_ms})).scalar_one()
    if taken is not None:
        raise Permanent(
            f"The partition {taken} of {run.name} has the id of another job; choose job ids that don't end like that."
        )
    await connection.execute(_ADD_RUN, parts)
    await connection.execute(_ADD_ROW, [{**shared, "id": one["id"], "message": sent} for one in parts])
    parted = await connection.execute(_PART, {**run.key, "partitions": len(parts), "transaction": transaction})
    if parted.rowcount == 0:
        raise TransactionEnded
    return Yielded(LOOK_AGAIN, CARRY_ON)


def _without_check_in(message: bytes, enqueued_ms: int) -> bytes:
    """The message of the partitions. A cron monitor hears of the whole job."""
    asked = decode(message)
    assert isinstance(asked, Message), "a message that can't be read is never split"  # noqa: S101 - a fault of the runtime
    headers = {name: value for name, value in asked.headers.items() if name != CRON_HEADER}
    return encode(Message(asked.name, asked.payload, enqueued_ms, from_outbox=True, headers=headers))


async def carry_on(driver: Driver, run: Identity) -> bool:
    """Whether partitions haven't ended."""
    unfinished: bool = await driver.fetchval(_UNFINISHED, run.job_id, run.enqueued_ms)
    return unfinished


async def summed_up(connection: AsyncConnection, run: Identity, partitions: int) -> dict[str, JsonValue]:
    """The results of the partitions, which have ended, added up as those of chunks are.

    Raises Permanent where one of them isn't completed.
    """
    parts = (await connection.execute(_PARTS, run.key)).all()
    failed = [one for one in parts if one.status != "completed"]
    if failed or len(parts) != partitions:
        first = f"{failed[0].id} is {failed[0].status}: {failed[0].error}" if failed else "their runs are gone"
        missing = partitions - len(parts) + len(failed)
        raise Permanent(f"{missing} of {partitions} partitions did not complete; {first}")
    result: dict[str, JsonValue] = {}
    for one in parts:
        told: dict[str, Any] = one.result or {}  # a handler with once=False, of another deploy, completes it without
        counts = {name: value for name, value in told.items() if type(value) is int}
        others = {name: value for name, value in told.items() if name not in counts}
        result = Step(None, counts=counts, result=others).added_to(result)
    totals = [one.total for one in parts]
    progress = {"done": sum(one.done for one in parts), "total": None if None in totals else sum(totals)}
    await connection.execute(_SUM_UP, {**run.key, **progress})
    return result
