"""The end of `worker run`: the interpreter waits for each thread that a handler has left, which nobody else does."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import structlog

from worker.cli.endings import ending
from worker.reporting.trace import loaded_sdk

FLUSH_S = 2.0
"""For what Sentry is still to be told, which nothing else sends where the process ends like this."""


@contextmanager
def departing(patience_s: float, in_order: int = os.EX_OK) -> Generator[None]:
    """Work in its block. When that has ended, however it did, the process ends within `patience_s`, threads or not.

    `in_order`: the exit code where the block raises nothing.

    Else one that recycles, or whose job was overdue, would stay for ever, and nobody would take its place: to who
    watches it, it lives.
    """
    code: object = in_order
    try:
        yield
    except SystemExit as error:
        code = error.code
        raise
    except Exception as error:
        code, _ = ending(error)
        raise
    finally:
        if code is None:
            code = in_order
        status = code if isinstance(code, int) else 1  # as Python's own end
        # A daemon: for this one the interpreter doesn't wait.
        threading.Thread(target=_leave, args=(patience_s, status), name="ratchet-departure", daemon=True).start()


def _leave(patience_s: float, status: int) -> None:
    time.sleep(patience_s)
    main = threading.main_thread()
    left = sorted(thread.name for thread in threading.enumerate() if not thread.daemon and thread is not main)
    hint = "the process ends without them" if left else "what is called at its end goes on; the process ends without it"
    structlog.get_logger("worker.departure").warning("threads_left", threads=left, hint=hint)
    if sdk := loaded_sdk():
        sdk.flush(FLUSH_S)
    os._exit(status)
