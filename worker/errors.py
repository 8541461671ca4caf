"""What a handler raises to say what should become of its job, and what the runtime raises about a job.

Each of them rolls the transaction back.
"""

from datetime import timedelta
from typing import Any

LONGEST_DELAY = timedelta(days=3652)
"""Ten years: PostgreSQL's clock goes further than any job will wait, but not without end."""


class Snooze(Exception):
    """Not now: run the job again after `delay`. Burns no attempt."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        given: Any = delay  # seconds are easily given
        if not isinstance(given, timedelta) or not timedelta(0) <= delay <= LONGEST_DELAY:
            raise ValueError(
                f"Snooze got a delay of {delay!r}; give a timedelta of zero or more, and at most ten years."
            )
        super().__init__(reason or f"snoozed for {delay}")
        self.delay = delay


class Cancel(Exception):
    """Never mind: the job ends as `cancelled` and isn't tried again."""

    reason = "cancelled by its handler"
    """Also of a subclass whose `__init__` doesn't call this one, as a dataclass's."""

    def __init__(self, reason: str = reason) -> None:
        super().__init__(reason)
        self.reason = str(reason)  # another error is easily given


class Permanent(Exception):
    """No retry can mend it: the job is Dead at once, kept with its bytes and this error, and can be replayed."""


class InvalidPayload(Permanent):
    """The payload doesn't fit the job's model, or the message can't be read. The text holds no value of the payload."""


class UnknownJob(LookupError):
    """No handler has this name. The job waits for a worker that knows it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No handler is bound to the job {name!r}; deploy a worker that has one, or add an alias.")
        self.name = name


class JobExpired(LookupError):
    """The id stood in the queue, but its message is gone from Redis, and PostgreSQL knows nothing of it."""


class SessionMisuse(RuntimeError):
    """A handler took over what the runtime owns: the commit, the rollback, or the session's single task."""


class TransactionEnded(Permanent):
    """A handler ended the transaction behind the session's back; what it had done may have been committed."""

    def __init__(self) -> None:
        super().__init__(
            "The handler ended its transaction by itself (COMMIT or ROLLBACK as SQL, or on the connection), so its "
            "work and its done mark can't commit together; leave the end to the runtime, and use begin_nested()."
        )


class SwallowedError(RuntimeError):
    """A handler caught a database error and went on, in a transaction that could not commit any more."""

    def __init__(self, *, lost: bool = False) -> None:
        """`lost`: with it went the connection, as where a statement is cut off on its way."""
        remedy = (
            "its connection went with it, as where asyncio.timeout cuts off a statement, so give that "
            "`set local statement_timeout` inside `async with session.begin_nested():`"
            if lost
            else "put the statement that may fail inside `async with session.begin_nested():`"
        )
        super().__init__(
            "The handler swallowed a database error, which had failed the whole transaction, so nothing was committed; "
            f"{remedy}."
        )


class SelfCancelled(RuntimeError):
    """A handler, or what it calls, cancelled the job's own task. A failure like any other."""

    def __init__(self) -> None:
        super().__init__(
            "The handler cancelled its own task, and nobody had asked for it; let it raise an error instead."
        )


class JobTimeout(RuntimeError):
    """A handler ran longer than its policy allows. A failure like any other."""


class ProcessDied(RuntimeError):
    """The process that ran a job by itself has died: `os._exit`, a segmentation fault, the kernel out of memory.

    A failure like any other; the third in a row, with no chunk committed in between, makes the job Dead.
    """
