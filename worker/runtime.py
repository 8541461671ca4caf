"""A worker put together: engine, Redis, relay, schedule and consumer, from settings. What `worker run` runs."""

import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from signal import SIGTERM
from typing import Any, TypeAlias

from arq.connections import ArqRedis
from arq.worker import Function, func
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from worker.app import App
from worker.app_worker import LAST_WORDS_S, AppWorker
from worker.availability import Availability
from worker.broker import connect_broker
from worker.claims import Claims
from worker.database import APPLICATION, DatabaseAway, create_engine
from worker.delivery import Delivery, Report
from worker.engine import Engine
from worker.executor import Executor
from worker.faults import is_lost_connection
from worker.handler import gates
from worker.heartbeat import BEAT_EVERY_S
from worker.lag import lag_watched
from worker.lease import Leases, end_this_process
from worker.lifespan import opened
from worker.limits import Limits, Paused
from worker.listen import listen
from worker.pauses import PAUSE_CHANNEL, Pauses
from worker.recycling import recycle_when_due
from worker.relay import OUTBOX_CHANNEL, Intervals, Relay
from worker.reporting.observer import Observer
from worker.setback import Setbacks
from worker.settings import Settings
from worker.shield import cancel_all
from worker.suspects.death import Deaths
from worker.suspects.quarantine import Quarantine
from worker.ticker import Ticker
from worker.vital import Vital
from worker.wake import listen_for_wakes

Execute: TypeAlias = Callable[[Delivery], Coroutine[Any, Any, Report]]
"""Carries out a delivery."""


@dataclass(frozen=True, slots=True)
class Services:
    """What lives as long as the process."""

    engine: AsyncEngine
    redis: ArqRedis
    availability: Availability
    relay: Relay
    executor: Executor
    pauses: Pauses
    vital: Vital


@asynccontextmanager
async def services(
    app: App, settings: Settings, observer: Observer, *, pushed: Callable[[], None], end: Callable[[], object]
) -> AsyncGenerator[Services]:
    """Engine, Redis, relay and schedule, running.

    `pushed` is told when the relay has sent something; `end` asks for an orderly stop, since a part has failed.
    """
    database_url = settings.database_url.get_secret_value()
    engine = create_engine(database_url, pool_size=settings.connections, pgbouncer=settings.pgbouncer)

    availability = Availability(engine)
    redis = connect_broker(settings.redis_url.get_secret_value())
    intervals = Intervals(
        poll=timedelta(seconds=settings.relay_poll),
        sweep_every=timedelta(seconds=settings.sweep_interval),
        sweep_older=timedelta(seconds=settings.sweep_interval),
        settle=timedelta(seconds=settings.lease / 3 + 1),
    )
    relay = Relay(engine, redis, availability, observer, pushed=pushed, intervals=intervals)
    executor = Executor(app.handlers, engine, observer, availability, worker_name(), ceiling=settings.ceiling)
    pauses = Pauses(engine, availability, observer)
    vital = Vital(observer, end)
    parts = {"relay": relay.run(), "ticker": Ticker(engine, app.schedule, availability, observer).run()}
    if settings.listens_at is not None:  # else relay and pauses look for themselves
        wakes = {OUTBOX_CHANNEL: relay.wake, PAUSE_CHANNEL: pauses.wake}
        parts["listen"] = listen(settings.listens_at.get_secret_value(), wakes, f"{APPLICATION} listen")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        stack.push_async_callback(redis.aclose)
        stack.push_async_callback(availability.close)
        stack.push_async_callback(cancel_all, [vital.start(*part) for part in parts.items()])
        yield Services(engine, redis, availability, relay, executor, pauses, vital)


async def run_worker(
    app: App, settings: Settings, observer: Observer, *, burst: bool = False, child: Sequence[str] | None = None
) -> None:
    """Consume until SIGTERM or SIGINT; in burst mode, until nothing that this worker knows is due.

    `child`: the command that starts a child for suspects; without one they run here, as all others.

    Both servers may be away, now and at any time: it waits for them. Raises SystemExit where a job outlived its timeout
    and its grace, or a vital part failed, and the process has to go.

    Its handlers of signals stay, for the caller to remove.
    """
    worker: AppWorker | None = None
    limits = Limits(gates(app.handlers))

    def pushed() -> None:
        if worker is not None:
            worker.wake()

    def end() -> None:
        if worker is not None:
            worker.handle_sig(SIGTERM)

    def pauses_changed(paused: Paused) -> None:
        limits.pause(paused)
        pushed()

    async with (
        opened(app.lifespan, observer),
        services(app, settings, observer, pushed=pushed, end=end) as parts,
        _executing(parts, app, settings, observer, child) as execute,
    ):
        engine = _engine(parts, settings, observer, execute, limits)
        worker = _worker(app, settings, parts.redis, engine, burst=burst)
        beside: dict[str, Coroutine[Any, Any, None]] = {
            "wake": listen_for_wakes(parts.redis, worker.wake),
            "pauses": parts.pauses.run(pauses_changed),
        }
        if not burst:  # which ends by itself, and only when nothing is left to do
            beside["recycling"] = recycle_when_due(worker, settings.max_jobs, settings.max_rss_mb)
        tasks = [parts.vital.start(*part) for part in beside.items()]
        try:
            with lag_watched():
                await worker.serve()
        finally:
            await cancel_all(tasks)
    if engine.leases.are_overdue or parts.vital.has_failed:
        sys.exit(os.EX_SOFTWARE)  # it ended in order, but a supervisor that restarts failures alone must restart it


def _grace(settings: Settings) -> timedelta:
    """How long a job may outlive its timeout: until then its lease is renewed, or its child lives."""
    return timedelta(seconds=settings.shutdown_grace + settings.lease)


def _engine(parts: Services, settings: Settings, observer: Observer, execute: Execute, limits: Limits) -> Engine:
    """What a worker holds its jobs by, whom it asks, and whom it tells."""
    lease = timedelta(seconds=settings.lease)
    return Engine(
        execute=execute,
        may_claim=lambda: parts.availability.is_up() and parts.pauses.are_known(),
        acknowledged=parts.relay.acknowledged,
        refill=partial(_refill, parts),
        fault=partial(observer.fault, "consumer"),
        abandon=partial(os._exit, os.EX_SOFTWARE),
        leases=Leases(
            settings.redis_url.get_secret_value(),
            lease,
            _grace(settings),
            recycle=end_this_process(timedelta(seconds=settings.shutdown_grace + 2 * LAST_WORDS_S)),
            fault=partial(observer.fault, "lease"),
        ),
        claims=Claims(parts.redis, lease, limits),
        draw=settings.queues.draw,
    )


def _worker(app: App, settings: Settings, redis: ArqRedis, engine: Engine, *, burst: bool) -> AppWorker:
    """The consumer, with the settings by arq's names."""
    return AppWorker(
        arq_functions(app),
        engine=engine,
        queues=settings.queues,
        redis_pool=redis,
        burst=burst,
        max_jobs=settings.concurrency,
        poll_delay=settings.poll_delay,
        keep_result=settings.keep_result,
        job_completion_wait=settings.shutdown_grace,
        health_check_interval=BEAT_EVERY_S,
    )


async def _refill(parts: Services) -> bool:
    """Whether there may be more to do: the relay sent something, or waits to send again, or PostgreSQL is away."""
    try:
        return await parts.relay.drain() > 0 or parts.relay.is_settling
    except (DBAPIError, DatabaseAway) as error:
        if not is_lost_connection(error):
            raise
        await parts.availability.check()
        return True


@asynccontextmanager
async def _executing(
    parts: Services, app: App, settings: Settings, observer: Observer, child: Sequence[str] | None
) -> AsyncGenerator[Execute]:
    """What carries out deliveries: the executor, and for suspects children, where there is a command for them."""
    if child is None:
        yield parts.executor.execute
        return
    setbacks = Setbacks(parts.engine, parts.availability, worker_name())
    deaths = Deaths(parts.engine, setbacks, observer, app.handlers)
    quarantine = Quarantine(parts.executor, deaths, child, _grace(settings))
    try:
        yield quarantine.execute
    finally:
        await quarantine.close()


def arq_functions(app: App) -> list[Function]:
    """The names of the app's jobs, as arq's Worker wants to know them. The executor has the handlers."""
    return [func(_never_called, name=name) for name in app.handlers]


async def _never_called(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:  # noqa: ARG001 - arq's signature
    raise AssertionError("The executor runs the handlers; this stands only for their names.")


def worker_name() -> str:
    """This process, as it stands beside the failures it met."""
    return f"{socket.gethostname()}:{os.getpid()}"
