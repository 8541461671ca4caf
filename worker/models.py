"""The runtime's tables, in the schema `worker`. The migrations are their source, and a test holds these to them.

Python writes the outbox through its model. Most else that is asked of them is SQL as text, beside what asks it.
"""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Double, Identity, LargeBinary, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Of the runtime's tables only; a domain has its own."""

    metadata = MetaData(schema="worker")
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True), int: BigInteger, float: Double}  # noqa: RUF012 - SQLAlchemy's own form


class Outbox(Base):
    """A job that left a transaction and isn't final yet.

    `sent_epoch` is null until the relay sends the row, and is then the epoch of the Redis that it was sent to.
    """

    __tablename__ = "outbox"
    # Only the key comes back from an INSERT, so that a producer needs no more than INSERT, and SELECT of `seq`.
    __mapper_args__ = {"eager_defaults": False}  # noqa: RUF012 - SQLAlchemy's own form

    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[str]
    enqueued_ms: Mapped[int]
    """Half of the identity: (id, enqueued_ms). Zero for a `job_id` that its caller chose."""
    name: Mapped[str]
    queue: Mapped[str]
    message: Mapped[bytes] = mapped_column(LargeBinary)
    """The wire message as bytes: jsonb would refuse NUL and lone surrogates."""
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    coalesces: Mapped[bool] = mapped_column(server_default="false")
    """Other rows may carry the same id: of those unsent one stays, and it waits while one of them is sent."""
    sent_epoch: Mapped[int | None]
    sent_at: Mapped[datetime | None]


class Run(Base):
    """The durable memory of one job: its lock lets one executor in, its status says that it is done once."""

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(primary_key=True)
    enqueued_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    queue: Mapped[str]
    status: Mapped[str]
    from_outbox: Mapped[bool]
    attempt: Mapped[int] = mapped_column(server_default="0")
    """Failures counted since the last progress."""
    next_at: Mapped[datetime | None]
    """When it may run again. The truth; the score in Redis is a copy."""
    cursor: Mapped[object | None] = mapped_column(JSONB)
    done: Mapped[int] = mapped_column(server_default="0")
    total: Mapped[int | None]
    """Rows worked on and rows in all, of a chunked job; the latter may be an estimate."""
    chunks: Mapped[int] = mapped_column(server_default="0")
    """How many have committed."""
    chunk_size: Mapped[int | None]
    """Rows of the next chunk."""
    row_seconds: Mapped[float | None]
    rate: Mapped[float | None]
    """Seconds that a row of a chunk's size takes, and rows done in a second of work; both smoothed (worker/pace.py)."""
    time_left_s: Mapped[float | None]
    """Seconds of work until `total`, as of the last chunk."""
    result: Mapped[object | None] = mapped_column(JSONB)
    error: Mapped[str | None]
    message: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The original bytes, kept where the job is dead or cancelled."""
    parent_id: Mapped[str | None]
    """Of a partition: the id of the run that it is a part of, which has the same `enqueued_ms`."""
    partitions: Mapped[int | None]
    """Of a parent: how many partitions its key range was split into."""
    bounds: Mapped[object | None] = mapped_column(JSONB)
    """Of a partition: `[lower, upper]` of its keys, as the cursor is written; null where it is open-ended."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class Attempt(Base):
    """One failure, with its traceback."""

    __tablename__ = "attempt"

    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[str]
    enqueued_ms: Mapped[int]
    attempt: Mapped[int]
    error: Mapped[str]
    traceback: Mapped[str]
    worker: Mapped[str]
    failed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Reject(Base):
    """A row of an input file that was refused, with the reason."""

    __tablename__ = "reject"

    seq: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    id: Mapped[str]
    enqueued_ms: Mapped[int]
    line: Mapped[int]
    """Line number in the file, from 1 (the header)."""
    reason: Mapped[str]
    row: Mapped[bytes] = mapped_column(LargeBinary)
    """The row as it stood in the file."""


class CronTick(Base):
    """A time of the schedule that was dealt with, inserted in the transaction that enqueues."""

    __tablename__ = "cron_tick"

    name: Mapped[str] = mapped_column(primary_key=True)
    scheduled_at: Mapped[datetime] = mapped_column(primary_key=True)
    job_id: Mapped[str | None]
    """None: a tick of the past that the first deploy passed over."""


class Pause(Base):
    """A queue or a job name that is held back."""

    __tablename__ = "pause"

    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RelayState(Base):
    """One row: which Redis the outbox was last sent to. A raised epoch makes every sent row unsent."""

    __tablename__ = "relay_state"

    installation: Mapped[str] = mapped_column(primary_key=True)
    """Names the marker key, so that two databases may share a Redis."""
    epoch: Mapped[int]
    marker: Mapped[str | None]
    redis_run_id: Mapped[str | None]
    raised_at: Mapped[datetime | None]
    swept_at: Mapped[datetime | None]
    """When a worker last began to look for what is marked as sent and isn't in Redis."""
