"""The event loop of a process that runs jobs."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from importlib import import_module
from importlib.util import find_spec
from typing import Any

Factory = Callable[[], asyncio.AbstractEventLoop]
HANDLED = signal.SIGTERM, signal.SIGINT


def loop_factory() -> Factory | None:
    """uvloop's where it is installed (the extra `fast`); None: asyncio's own."""
    return import_module("uvloop").new_event_loop if find_spec("uvloop") else None


def run(main: Coroutine[Any, Any, None], factory: Factory | None = None) -> None:
    """Run `main` on a loop of its own, to its end, whatever a task beside it raises.

    asyncio lets a SystemExit (argparse raises one) or a KeyboardInterrupt end the loop, from any task that somebody's
    handler has started. Whoever awaits that task gets it as well, and the job has failed; all others must not notice.

    What a handler forks is left to itself: a signal to it is none to this process.
    """
    # They wait meanwhile: one that came to the fork before it has forgotten them would be told to this process.
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=_forget_signals)
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done():  # it is main's own
                    raise
                is_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else main handles that
                if isinstance(error, KeyboardInterrupt) and is_ctrl_c:
                    task.cancel()


def _hold_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _let_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def _forget_signals() -> None:
    """In a fork. It has inherited the handlers that ask for an orderly stop, which would end nothing there.

    And it shares the descriptor through which Python tells the loop of a signal. So `Process.terminate`, which
    multiprocessing's pools call as well, stopped the worker instead, and the next one that took the job, without end.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_signals()
