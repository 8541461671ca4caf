"""What each line of an attempt carries: asked when a line is logged, since most attempts log one or none."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar

from structlog.typing import EventDict, WrappedLogger

bound: ContextVar[Callable[[], Mapping[str, object]] | None] = ContextVar("bound", default=None)
"""Set in an attempt's task, and so in the tasks that it makes."""


def add_bound(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor."""
    fields = bound.get()
    return event if fields is None else {**fields(), **event}
