"""enqueue(session, job): a job leaves with the caller's transaction or not at all."""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from uuid_utils import uuid7

from worker.job import QUEUE, QUEUE_ADVICE, Job
from worker.models import Outbox
from worker.reporting.trace import outgoing_headers
from worker.wire import Message, encode

CHOSEN_ID = re.compile(r"[!-~]{1,200}")
MAX_KEY_BYTES = 1_000
LONG_PAST = datetime(1970, 1, 1, tzinfo=UTC)


def enqueue(
    session: Session | AsyncSession,
    job: Job,
    *,
    key: str | None = None,
    job_id: str | None = None,
    delay: timedelta | None = None,
    at: datetime | None = None,
    queue: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Add `job` to the caller's transaction and return its id. Asks nothing of the server.

    - `key` coalesces pending work of one job name: after each commit at least one run begins that sees it, with the
      newest payload and the earliest due time, and at most one waits behind the one that runs.
    - `job_id` is an idempotency key over all job names: the same id again, under another name too, is a Duplicate for
      as long as its run is kept.
    - `delay` counts from the commit's own transaction start, by PostgreSQL's clock; `at` is an aware time.
    - `queue`: where it isn't the job's own. `headers` go along in the message, beside those of an open trace.

    Raises ValueError for arguments that exclude each other, a naive `at`, a `key`, `job_id` or `queue` that can't be
    one, headers that make the message too large, and what `Job.to_payload` refuses, as a payload over 1 MiB.
    """
    checked_job(job)
    if key is not None and job_id is not None:
        raise ValueError(
            "enqueue got both key and job_id; a key coalesces, a job_id is applied once: give one of them."
        )
    at = checked_at(delay, at)
    if job_id is not None:
        chosen, enqueued_ms = checked_job_id(job_id), 0
    else:
        chosen = str(uuid7()) if key is None else coalescing_id(job.job_name, key)
        enqueued_ms = time.time_ns() // 1_000_000
    all_headers = {**outgoing_headers(), **(headers or {})}
    row = Outbox(
        id=chosen,
        enqueued_ms=enqueued_ms,
        name=job.job_name,
        queue=checked_queue(queue or job.job_queue),
        coalesces=key is not None or job_id is not None,
        message=encode(Message(job.job_name, job.to_payload(), enqueued_ms, from_outbox=True, headers=all_headers)),
    )
    if delay is not None:
        # The days of an interval are the session's, which have 23 or 25 hours now and then.
        row.due_at = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, delay.total_seconds())
    elif at is not None:
        row.due_at = at
    session.add(row)
    return row.id


def enqueue_many(session: Session | AsyncSession, jobs: Iterable[Job]) -> list[str]:
    """`enqueue` each of `jobs`; the rows leave in few statements. Returns the ids in the order of the jobs."""
    return [enqueue(session, job) for job in jobs]


def checked_job(job: object) -> None:
    """Raises ValueError for what is no job, and doesn't quote it: it may be a payload."""
    if not isinstance(job, Job):  # its class, or its payload, is easily given
        told = f"the class {job.__name__}" if isinstance(job, type) else f"a {type(job).__name__}"
        raise ValueError(f"enqueue got {told} for a job; give an instance of a class of Job, with its fields.")  # noqa: TRY004 - as the others


def _checked_kind(argument: str, given: object, kind: type, wanted: str) -> None:
    """Raises ValueError for what no type checker has seen: seconds, and ids that are numbers, are easily given."""
    if given is not None and not isinstance(given, kind):
        raise ValueError(f"enqueue got {argument}={given!r}; give {wanted}.")


def coalescing_id(name: str, key: str) -> str:
    """The id of all jobs of one name and key: a UUIDv8 from sha256 over name, NUL and key (as in `worker.enqueue`).

    Raises ValueError for an empty or overlong key, or one that PostgreSQL's text can't hold.
    """
    _checked_kind("key", key, str, "a text")
    encoded = key.encode("utf-8", "surrogatepass")
    if not encoded or len(encoded) > MAX_KEY_BYTES or "\0" in key or any("\ud800" <= char <= "\udfff" for char in key):
        raise ValueError(
            f"enqueue got a key of {len(encoded)} bytes; use 1 to {MAX_KEY_BYTES} bytes of UTF-8 without NUL."
        )
    digest = bytearray(hashlib.sha256(name.encode() + b"\0" + encoded).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80  # version 8: RFC 9562, section 5.8
    digest[8] = digest[8] & 0x3F | 0x80
    return str(UUID(bytes=bytes(digest)))


def checked_at(delay: timedelta | None, at: datetime | None) -> datetime | None:
    """`at` in UTC, or a ValueError where it has no time zone, lies outside the calendar, or excludes a delay.

    What is long past is due now; asyncpg can't write the year 1.
    """
    if delay is not None and at is not None:
        raise ValueError("enqueue got both delay and at; give one of them.")
    _checked_kind("delay", delay, timedelta, "a timedelta")
    _checked_kind("at", at, datetime, "an aware datetime")
    if at is not None and at.tzinfo is None:
        raise ValueError(f"enqueue got at={at}, which has no time zone; give an aware time.")
    try:
        return at and max(at.astimezone(UTC), LONG_PAST)
    except OverflowError:
        raise ValueError(f"enqueue got at={at}, which in UTC is before year 1 or after 9999; give another.") from None


def checked_job_id(job_id: str) -> str:
    """`job_id`, or a ValueError where it is no id that a caller may choose."""
    _checked_kind("job_id", job_id, str, "a text")
    if not CHOSEN_ID.fullmatch(job_id):
        raise ValueError(
            f"enqueue got the job_id {job_id[:50]!r}; use 1 to 200 printable ASCII characters without spaces."
        )
    return job_id


def checked_queue(queue: str) -> str:
    """`queue`, or a ValueError where it is no queue's name."""
    _checked_kind("queue", queue, str, "a text")
    if not QUEUE.fullmatch(queue):
        raise ValueError(f"The queue is called {queue[:50]!r}; {QUEUE_ADVICE}.")
    return queue
