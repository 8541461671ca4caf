"""What a handler raises to say what should become of its job. Each of them rolls the transaction back."""

from datetime import timedelta


class Snooze(Exception):  # noqa: N818 - it asks for a wait; nothing is wrong
    """Not now: run the job again after `delay`. Burns no attempt."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        if delay < timedelta(0):
            raise ValueError(f"Snooze got a delay of {delay}; give a delay of zero or more.")
        super().__init__(reason or f"snoozed for {delay}")
        self.delay = delay


class Cancel(Exception):  # noqa: N818 - it asks for an end; nothing is wrong
    """Never mind: the job ends as `cancelled` and isn't tried again."""

    def __init__(self, reason: str = "cancelled by its handler") -> None:
        super().__init__(reason)
        self.reason = reason


class Permanent(Exception):  # noqa: N818 - read as "raise Permanent"
    """No retry can mend it: the job is Dead at once, kept with its bytes and this error, and can be replayed."""


class InvalidPayload(Permanent):
    """The payload does not fit the job's model, or the message can't be read. The text holds no value of the payload."""


class UnknownJob(LookupError):
    """No handler has this name. The job waits for a worker that knows it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No handler is bound to the job {name!r}; deploy a worker that has one, or add an alias.")
        self.name = name


class JobExpired(LookupError):
    """The id stood in the queue, but its message is gone from Redis, and PostgreSQL knows nothing of it."""


class SessionMisuse(RuntimeError):
    """A handler took over what the runtime owns: the commit, the rollback, or the session's single task."""
