"""Structured logs on stderr, one line an event: for people (console) or machines (JSON).

Standard output belongs to what a command prints. Lines of structlog and of the standard library look the same.
"""

import asyncio
import json
import logging
import sys
from functools import partial
from typing import Any, Protocol, TextIO, cast

import structlog
from pydantic_core import to_json
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.printable import printable
from worker.reporting.bound import add_bound
from worker.reporting.tracebacks import with_texts, without_texts

POOL = "worker.database.RuntimePool"
"""SQLAlchemy names a pool's logger by its class."""
QUIET = {
    "alembic.runtime.plugins": logging.WARNING,
    "arq": logging.WARNING,
    "asyncio": logging.WARNING,
    "sqlalchemy": logging.WARNING,
    POOL: logging.WARNING,
    "urllib3": logging.ERROR,
}
"""From which level on these are heard. Below it they chatter, and some of them quote payloads and rows.

urllib3 warns of each try of each envelope while Sentry is away.
"""

FIRST = ("timestamp", "level", "event", "job", "job_id", "queue", "attempt", "trace_id")
"""In this order they stand at the head of a line."""

HANDLER = "ratchet"
ARQ_HANDLER = "arq.standard"
"""The stock arq command's own; it would write each line a second time."""
RECORD_FIELDS = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})
"""What every record has, the last two once any formatter has seen it."""


class LogSettings(Protocol):
    """What the logs need of the settings; the supervisor has no others."""

    @property
    def log_format(self) -> str:
        """`console` or `json`."""
        ...

    @property
    def log_level(self) -> str:
        """`debug`, `info`, `warning` or `error`."""
        ...

    @property
    def log_payloads(self) -> bool:
        """Whether payloads and the texts of errors may be shown."""
        ...


def configure(settings: LogSettings) -> None:
    """Send every log line of this process to stderr, in the format and from the level that the settings name."""
    stream = sys.stderr
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    finish: list[Processor] = _finish(settings, colors=stream.isatty())
    structlog.configure(
        processors=[merge_contextvars, add_bound, structlog.processors.add_log_level, _add_name, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=partial(Lines, stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.set_name(HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                merge_contextvars,
                add_bound,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                _add_extra,
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    if not settings.log_payloads:
        handler.addFilter(_name_errors)
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != HANDLER] + [handler]
    root.setLevel(level)
    for library, least in QUIET.items():
        logging.getLogger(library).setLevel(max(level, least))
    logging.getLogger(POOL).addFilter(_is_no_cancellation)
    logging.captureWarnings(capture=True)
    arq = logging.getLogger("arq")
    arq.handlers = [other for other in arq.handlers if other.get_name() != ARQ_HANDLER]


def _finish(settings: LogSettings, *, colors: bool) -> list[Processor]:
    """From the event to the text of its line."""
    tracebacks = Tracebacks(texts=settings.log_payloads)
    if settings.log_format == "json":
        return [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            tracebacks,
            _sort,
            structlog.processors.JSONRenderer(_in_json, separators=(",", ":")),
        ]
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        tracebacks,
        _escape,
        _sort,
        structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


def _in_json(event: EventDict, **options: Any) -> str:
    """What json.dumps makes of plain values, in a fifth of its time (0.7 against 3.4 us, in one run).

    That writes what isn't ASCII: half a surrogate pair has no UTF-8, and a C1 control character steers a terminal.
    """
    try:
        line = to_json(event, fallback=options["default"])
    except (ValueError, TypeError):
        return json.dumps(event, **options)
    return line.decode() if line.isascii() else json.dumps(event, **options)


class Lines:
    """Where structlog's lines go, each written whole. One that can't be written (a closed pipe, a full disk) is lost:
    a log is never worth a job.
    """

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = msg


class Tracebacks:
    """Makes `exc_info` the text `exception`, without the errors' own texts unless they may be shown."""

    def __init__(self, *, texts: bool) -> None:
        self._render = with_texts if texts else without_texts

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A structlog processor."""
        error = _error_of(event.pop("exc_info", None))
        if error is not None:
            event["exception"] = self._render(error)
        return event


def _error_of(exc_info: object) -> BaseException | None:
    """`exc_info` in any of the forms that loggers take."""
    if exc_info is True:
        return sys.exception()
    if isinstance(exc_info, tuple):
        exc_info = cast("tuple[object, ...]", exc_info)[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _name_errors(record: logging.LogRecord) -> bool:
    """A filter of the standard library: `log.exception("failed: %s", error)` names the error's type, not its text."""
    if isinstance(record.msg, BaseException):
        record.msg = type(record.msg).__name__
    if isinstance(record.args, dict):
        record.args = {
            key: type(value).__name__ if isinstance(value, BaseException) else value
            for key, value in record.args.items()
        }
    elif isinstance(record.args, tuple):
        record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
    return True


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """A connection that is being closed when the process is told to end isn't closed in order, and that is no fault."""
    return not isinstance(_error_of(record.exc_info), asyncio.CancelledError)


def tell_loop_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Log what nobody awaited by its type and frames.

    asyncio's own handler writes the task's repr, which holds the error's text.
    """

    def tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error: BaseException | None = context.get("exception")
        task = context.get("task") or context.get("future")
        name = task.get_name() if isinstance(task, asyncio.Task) else None
        structlog.get_logger("asyncio").error("never_awaited", task=name, error=type(error).__name__, exc_info=error)

    loop.set_exception_handler(tell)


def _sort(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**{key: event[key] for key in FIRST if key in event}, **event}


def _add_name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if logger.name:
        event["logger"] = logger.name
    return event


def _add_extra(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What was given to a logger of the standard library as `extra`."""
    given = vars(cast("logging.LogRecord", event["_record"]))
    return {**{key: value for key, value in given.items() if key not in RECORD_FIELDS}, **event}


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No value may break a line or steer a terminal: an id that a producer chose can hold anything.

    A traceback has lines of its own, and an error's text at its end.
    """
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = "\n".join(map(printable, value.split("\n"))) if key == "exception" else printable(value)
    return event
