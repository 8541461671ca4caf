"""What a worker and its child tell each other: frames of JSON, each behind its length. Never a pickle."""

import asyncio
import json
import struct
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from pydantic import JsonValue

from worker.delivery import Delivery, Report
from worker.outcome import Cancelled, Completed, Dead, Duplicate, Outcome, Released, Retrying, Snoozed, Yielded
from worker.wire import Message

LENGTH = struct.Struct(">I")
OUTCOMES = {kind.__name__: kind for kind in (
    Completed, Duplicate, Yielded, Snoozed, Retrying, Released, Cancelled, Dead,
)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Start:
    """To the child: run this delivery, which has this number between the two of them."""

    number: int
    job_id: str
    queue: str
    message: str
    """Its bytes, as Latin-1."""
    delivered_ms: int
    due_ms: int
    failures: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the child: the delivery was cancelled. `aborted`: by arq's abort; else the worker stops."""

    number: int
    aborted: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """To the child: the worker was asked to stop."""


@dataclass(frozen=True, slots=True)
class Held:
    """To the child: whether the lease is ours."""

    number: int
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """From the child: it has loaded the application. What it dies of from now on is a job."""


@dataclass(frozen=True, slots=True)
class Begins:
    """From the child: a transaction begins that may take so long."""

    number: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class AsksHeld:
    """From the child: it wants to know whether the lease is ours."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """From the child: what came of a delivery."""

    number: int
    outcome: str
    fields: dict[str, JsonValue]
    attempt: int
    started_ms: int
    finished_ms: int
    adopted: str | None
    has_begun: bool


Frame: TypeAlias = Start | Cancel | Stop | Held | Ready | Begins | AsksHeld | Ended
KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Start, Cancel, Stop, Held, Ready, Begins, AsksHeld, Ended)}


def pack(frame: Frame) -> bytes:
    """The bytes of one frame."""
    body = json.dumps([type(frame).__name__, asdict(frame)], separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> AsyncGenerator[Frame]:
    """Frames until the other side is gone."""
    try:
        while True:
            (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            kind, fields = json.loads(await reader.readexactly(size))
            yield KINDS[kind](**fields)
    except (asyncio.IncompleteReadError, OSError):
        return


def start_of(number: int, delivery: Delivery, message: bytes) -> Start:
    """What the child has to know of a delivery."""
    times = delivery.delivered_ms, delivery.due_ms
    return Start(number, delivery.job_id, delivery.queue, message.decode("latin-1"), *times, delivery.failures)


def end_of(number: int, report: Report) -> Ended:
    """What the worker has to know of a report."""
    fields: dict[str, Any] = asdict(report.outcome)
    if fields.get("delay") is not None:
        fields["delay"] = fields["delay"].total_seconds()
    adopted = None if report.adopted is None else report.adopted.decode("latin-1")
    times = report.started_ms, report.finished_ms
    return Ended(number, type(report.outcome).__name__, fields, report.attempt, *times, adopted, report.has_begun)


def report_of(ended: Ended, message: Message) -> Report:
    """The report that the child made."""
    fields: dict[str, Any] = dict(ended.fields)
    if fields.get("delay") is not None:
        fields["delay"] = timedelta(seconds=fields["delay"])
    outcome: Outcome = OUTCOMES[ended.outcome](**fields)
    adopted = None if ended.adopted is None else ended.adopted.encode("latin-1")
    times = ended.started_ms, ended.finished_ms
    return Report(outcome, message, ended.attempt, *times, adopted, has_begun=ended.has_begun)
