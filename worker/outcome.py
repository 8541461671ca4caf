"""What came of one attempt. One value, matched with `assert_never` wherever it is used."""

from dataclasses import dataclass
from datetime import timedelta

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Completed:
    """The transaction committed."""

    result: JsonValue = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The run was final before this delivery; the handler wasn't called.

    `failed` holds the error of a run that wasn't a success.
    """

    result: JsonValue = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Yielded:
    """Chunks committed and more are to come, or a chunked job is held back. No attempt was burnt."""

    delay: timedelta | None = None
    """None: it keeps its place in the queue; zero: it goes to the end of what is due."""
    reason: str = ""
    has_committed: bool = True
    """False: it was held back, perhaps before its handler was called."""


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The handler asked for a wait. No attempt was burnt."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class Retrying:
    """It failed and will be tried again after `delay`."""

    delay: timedelta
    error: str


@dataclass(frozen=True, slots=True)
class Released:
    """Put back with nothing counted: the lock was held, it isn't due, the worker stops, PostgreSQL is away."""

    reason: str
    delay: timedelta = timedelta(0)
    clears: bool = False
    """Whether a suspect is none any more: what it waits for isn't its own work."""
    others_first: bool = False
    """Whether this worker can't run it, and another may: those have it to themselves for a second when it is due."""


BUSY = timedelta(seconds=1)
"""When a job is offered again that something stands in the way of."""
OFFER_AGAIN = timedelta(seconds=5)
"""When a job is offered again that this worker can't run: an unknown name, or a message that the sweep will mend."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended on request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Dead:
    """Out of attempts, or past mending. Kept with its original bytes; can be replayed."""

    error: str


Final = Completed | Duplicate | Cancelled | Dead
"""After these nothing is left to deliver."""

Unfinished = Yielded | Snoozed | Retrying | Released
"""After these the same message is delivered again."""

Outcome = Final | Unfinished


def describe(error: BaseException) -> str:
    """`EmailTaken: the text`, as in `arq:result`, `worker.run` and `worker show`. At most 2,000 characters."""
    try:
        told = str(error)
    except Exception:  # noqa: BLE001 - whatever an error's own code does, it is told of
        told = "its text can't be read"
    return f"{type(error).__name__}: {told}"[:2_000]
