"""worker run: consume until told to stop."""

import asyncio
import atexit
import os
import signal
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from signal import SIGINT, SIGTERM
from typing import Annotated, Any, cast

import structlog
import typer
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker import event_loop
from worker.app import App
from worker.app_worker import LAST_WORDS_S
from worker.broker import connect_broker
from worker.cli.departure import departing
from worker.cli.endings import AWAY, FAILED, WRONG, Refusal, ending
from worker.cli.loading import load_app
from worker.cli.reach import command_engine, reach_database, reach_redis
from worker.database import DatabaseAway
from worker.faults import is_lost_connection
from worker.garbage import settle_heap
from worker.lifeline import hold_on
from worker.outdated import missing_versions
from worker.reporting.logs import tell_loop_errors
from worker.reporting.observer import Observer
from worker.reporting.start import start_reporting
from worker.runtime import run_worker
from worker.settings import Settings, load_settings
from worker.supervisor import ADDED, IN_ORDER, KILL_AFTER_S, Plan, become_supervisor

SWITCH_INTERVAL_S = 0.0005
"""How long the event loop waits for a thread that computes, at most; Python's own is ten times as long. With that to
read ahead in a thread would gain nothing, since each answer of PostgreSQL waits for the thread."""


def run(  # noqa: PLR0917 - typer gives them by name
    app: Annotated[str | None, typer.Option(help="The App to run, as module:attribute. [WORKER_APP]")] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(help="A queue to consume; give it again for more, served in this order. [WORKER_QUEUES]"),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Jobs at once. [WORKER_CONCURRENCY]")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes, each with as many jobs at once. [WORKER_PROCESSES]")
    ] = None,
    burst: Annotated[  # noqa: FBT002 - a flag
        bool, typer.Option("--burst", help="End when nothing that this worker knows is due.")
    ] = False,
    lifeline: Annotated[int | None, typer.Option(hidden=True, help="Given by the supervisor.")] = None,
) -> None:
    """Consume jobs until SIGTERM or Ctrl-C.

    Then nothing more is claimed, running jobs get a grace period (WORKER_SHUTDOWN_GRACE), and what still runs is rolled
    back and handed to other workers. A server that is away is waited for, now and at any time.
    """
    with _telling_the_supervisor(lifeline):
        settings = load_settings(
            app=app, queues=tuple(queue) if queue else None, concurrency=concurrency, processes=processes
        )
        if lifeline is not None:
            hold_on(lifeline, settings.shutdown_grace + KILL_AFTER_S)
        application = load_app(settings.app)
        if settings.processes > 1 and lifeline is None:
            become_supervisor(plan(settings, burst=burst))
        observer = start_reporting(settings, application.schedule)
        settle_heap()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        in_order = os.EX_OK if lifeline is None else IN_ORDER
        working = consume(application, settings, observer, burst=burst, in_order=in_order)
        event_loop.run(_departing(working, lifeline, in_order), event_loop.loop_factory())
    raise typer.Exit(in_order)


async def _departing(working: Coroutine[Any, Any, None], lifeline: int | None, in_order: int) -> None:
    with departing(LAST_WORDS_S, in_order), _telling_the_supervisor(lifeline):
        await working


@contextmanager
def _telling_the_supervisor(lifeline: int | None) -> Generator[None]:
    """Where there is one, it knows a refusal by a code that no job ends its process with."""
    try:
        yield
    except Exception as error:
        code, sentence = ending(error)
        if lifeline is None or code not in {WRONG, AWAY}:
            raise
        raise Refusal(sentence, ADDED + code) from error


def plan(settings: Settings, *, burst: bool) -> Plan:
    """A supervisor whose children run this same command, each as one worker."""
    return Plan(
        command=[sys.executable, "-P", "-m", "worker", "run"],
        arguments=sys.argv[2:],
        processes=settings.processes,
        grace_s=settings.shutdown_grace,
        burst=burst,
        log_format=settings.log_format,
        log_level=settings.log_level,
    )


def child_command(settings: Settings) -> list[str]:
    """Starts a child for suspects, which reads its settings from the environment as this process does."""
    return [sys.executable, "-P", "-m", "worker.suspects.main", settings.app]


async def consume(
    app: App, settings: Settings, observer: Observer, *, burst: bool = False, in_order: int = os.EX_OK
) -> None:
    """Wait for both servers, check the database's version, and work. Returns when told to stop, or at a burst's end.

    `in_order`: the exit code of Ctrl-C after that. The process's own is its caller's affair.

    Raises Refusal for an app without handlers and for a missing migration, and what says that a server refuses us;
    SystemExit where it was cancelled and nobody has told it to stop.
    """
    if not app.handlers:  # arq's worker refuses that too, when parts of ours have been made, and not in a sentence
        raise Refusal(f"{settings.app} (WORKER_APP) has no handlers, so nothing can run; give its App one.", WRONG)
    loop, this_task = asyncio.get_running_loop(), asyncio.current_task()
    is_told = False

    def stop() -> None:
        nonlocal is_told
        is_told = True
        cast("asyncio.Task[None]", this_task).cancel()

    tell_loop_errors(loop)
    for signum in (SIGTERM, SIGINT):
        # Until the worker sets handlers of its own, which let jobs end first.
        loop.add_signal_handler(signum, stop)
    try:
        await ready(app, settings)
        _say_started(app, settings)
        await run_worker(app, settings, observer, burst=burst, child=child_command(settings))
    except asyncio.CancelledError:
        if not is_told:
            _say_cancelled()
            sys.exit(os.EX_SOFTWARE)  # a supervisor that restarts failures alone must restart it
    except Exception as error:
        # The command's own sentence says no more than its type; who is told of faults hears where it was.
        if ending(error)[0] == FAILED:
            observer.fault("worker", error)
        raise
    finally:
        # Nothing is left that SIGTERM could ask for: it must not turn an orderly end into a death. Ctrl-C still ends
        # what a handler's thread may hold up.
        for signum, last in (SIGTERM, signal.SIG_IGN), (SIGINT, partial(_leave, in_order)):
            loop.remove_signal_handler(signum)
            signal.signal(signum, last)
        atexit.register(signal.signal, SIGINT, signal.SIG_IGN)  # else the interpreter's own end makes it deadly again


def _say_started(app: App, settings: Settings) -> None:
    structlog.get_logger("worker.start").info(
        "started",
        app=settings.app,
        jobs=len(app.jobs),
        queues=list(settings.queues),
        concurrency=settings.concurrency,
    )


def _say_cancelled() -> None:
    hint = "a task group in the app's lifespan cancels its worker where one of its tasks fails; the worker ends"
    structlog.get_logger("worker.start").error("worker_cancelled", hint=hint)


def _leave(code: int, _signum: int, _frame: object) -> None:
    os._exit(code)


async def ready(app: App, settings: Settings) -> None:
    """Return when both servers answer and the database is up to date, however long that takes. Raises as `consume`."""
    redis = connect_broker(settings.redis_url.get_secret_value())
    engine = command_engine(settings, pool_size=1)
    try:
        await reach_database(engine, patience=None)
        while not await _are_checked(engine, app, settings):
            await reach_database(engine, patience=None)
        await reach_redis(redis, patience=None)
    finally:
        await engine.dispose()
        await redis.aclose()


async def _are_checked(engine: AsyncEngine, app: App, settings: Settings) -> bool:
    """Whether the versions could be read. False: the connection was lost.

    Raises as `check_versions` does. A supervisor would take that end for a refusal, and end all of its processes.
    """
    try:
        await check_versions(engine, app, settings.app)
    except (DBAPIError, DatabaseAway) as error:
        if not is_lost_connection(error) or getattr(error, "refused", False):
            raise
        return False
    return True


async def check_versions(engine: AsyncEngine, app: App, name: str) -> None:
    """Raises Refusal where a migration is missing. It tells the App's `name`: who forgot to set it sees the default."""
    missing = await missing_versions(engine, app.migrations)
    if missing:
        lacking = f"the migrations of {name} (WORKER_APP) up to {', '.join(sorted(missing))}"
        raise Refusal(f"The database lacks {lacking}; run worker migrate.", WRONG)
