"""The lifeline of a supervised worker: a pipe whose other end its supervisor alone holds.

When the supervisor is gone, however it went, the pipe is at its end, and the worker ends too. Works wherever there are
pipes; Linux's PR_SET_PDEATHSIG would work there alone.
"""

import os
import threading
import time
from signal import SIGTERM

import structlog


def hold_on(lifeline: int, patience_s: float) -> None:
    """From now on, when the pipe ends: ask this process for an orderly stop, and end it `patience_s` later.

    `lifeline` is the descriptor of the pipe's read end.
    """
    # A thread: it watches while the application is imported, and while a handler blocks the event loop.
    threading.Thread(target=_watch, args=(lifeline, patience_s), name="ratchet-lifeline", daemon=True).start()


def _watch(lifeline: int, patience_s: float) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns at the end
    if structlog.is_configured():  # not yet while the application is imported
        structlog.get_logger("worker.lifeline").warning("supervisor_gone", hint="this process ends too")
    os.kill(os.getpid(), SIGTERM)
    time.sleep(patience_s)
    os._exit(os.EX_SOFTWARE)
