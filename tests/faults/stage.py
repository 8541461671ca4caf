"""A worker to be struck, the servers it works on, and the judge who reads nothing but these."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

from arq.connections import ArqRedis, create_pool
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.faults.points import VICTIM, Strike, Victim
from worker import runtime
from worker.app import App
from worker.broker import connect_broker
from worker.database import connect, create_engine
from worker.driver import Driver
from worker.lease import Leases
from worker.reporting.observer import Observers
from worker.settings import load_settings

LOOK_EVERY_S = 0.006
TIME_PASSES_AFTER_S = 0.15
PATIENCE_S = 30.0
"""After which what was asked counts as lost. It takes a tenth of a second where the machine is at rest."""
COMES_WITHIN_S = 3.0
"""The same, to a site."""


@dataclass(frozen=True)
class Asked:
    """What a scenario has enqueued, and what must have come of it."""

    effects: Sequence[str]
    """What the handlers must have committed, each once."""
    ids: Sequence[str] = ()
    ids_sql: str | None = None
    """Asks for the ids, where they aren't known before."""
    statuses: Sequence[str] = ("completed",)
    """Of every run, one of these. None: a run needn't be kept, and is completed if it is."""
    needs_run: bool = True
    at_least_once: bool = False
    at_most_once: bool = False


@dataclass
class Stage:
    """One scenario's."""

    postgres: Driver
    engine: AsyncEngine
    """The producers'."""
    redis: ArqRedis
    app: App
    settings: Mapping[str, Any]
    worker: "Running"
    victim: Victim = field(default_factory=Victim)
    _task: asyncio.Task[None] | None = None
    _zombie: "Driver | None" = None

    def start(self, strikes: Sequence[Strike] = ()) -> None:
        """A fresh worker."""
        self.victim = Victim(strikes=list(strikes))
        context = copy_context()
        context.run(VICTIM.set, self.victim)
        running = _process(self.worker(self))
        self._task = asyncio.get_running_loop().create_task(running, name="victim", context=context)
        self.victim.stop = partial(_stop_once, self._task)

    def strike(self, strikes: Sequence[Strike]) -> None:
        """What shall happen to it from now on."""
        self.victim.strikes = list(strikes)
        self.victim.reached = {}

    async def end(self) -> None:
        """Stop it, and whatever holds it up."""
        await self._end_tasks()
        if self._zombie is not None:
            self._zombie.terminate()

    async def _end_tasks(self) -> None:
        """Once isn't enough for one that was killed."""
        if self._task is not None and not self._task.cancelling():  # a second time would break off its cleaning up
            self._task.cancel()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while others:
            _, others = await asyncio.wait(others, timeout=0.05)
            assert asyncio.get_running_loop().time() < deadline, f"don't end: {where(others)}"
            for task in others:
                if self.victim.is_dead or self.has_ended():
                    task.cancel()
        self._task = None

    def has_ended(self) -> bool:
        return self._task is None or self._task.done()

    async def settle(self, asked: Asked) -> str | None:
        """Let the worker go on, and a fresh one where it has ended, until all is as it must be; else say what isn't."""
        loop = asyncio.get_running_loop()
        deadline, time_passes = loop.time() + PATIENCE_S, loop.time() + TIME_PASSES_AFTER_S
        while (wrong := await self._wrong(asked)) is not None:
            if wrong.startswith("twice") or loop.time() > deadline:
                return wrong
            if self.has_ended():
                left = self.victim.strikes
                reached = self.victim.reached
                await self._end_tasks()
                await self.let_time_pass()
                self.start(left)
                self.victim.reached = reached
            if loop.time() > time_passes:
                await self.let_time_pass()
                time_passes = loop.time() + TIME_PASSES_AFTER_S
            await asyncio.sleep(LOOK_EVERY_S)
        return None

    async def comes_to(self, *sites: str) -> None:
        """Wait until the worker has come to all of `sites`, as it does unless it is struck before."""
        loop, was_to_be_struck = asyncio.get_running_loop(), bool(self.victim.strikes)
        deadline = loop.time() + COMES_WITHIN_S
        while not self.victim.reached.keys() >= set(sites) and loop.time() < deadline:
            if was_to_be_struck and not self.victim.strikes:
                was_to_be_struck, deadline = False, loop.time() + 2 * TIME_PASSES_AFTER_S
            await asyncio.sleep(LOOK_EVERY_S)

    async def settles_in(self) -> None:
        """Wait until the lease's thread runs, as it does once the worker has started."""
        while self.victim.renewing is None and not self.has_ended():  # noqa: ASYNC110 - the test's own look
            await asyncio.sleep(LOOK_EVERY_S)

    async def zombie(self, application: str = "ratchet worker, stopped") -> Driver:
        """The connection of a worker that was stopped, or of somebody else."""
        if self._zombie is not None:
            self._zombie.terminate()
        self._zombie = await connect(self.settings["database_url"], application)
        return self._zombie

    async def let_time_pass(self) -> None:
        """Leases run out, and what waits is due."""
        leases: list[bytes] = await self.redis.keys("arq:in-progress:*")
        if leases:
            await self.redis.delete(*leases)
        for queue in (b"arq:queue", b"ratchet:leases:arq:queue"):
            waiting = await self.redis.zrange(queue, 0, -1)
            if waiting:
                await self.redis.zadd(queue, dict.fromkeys(waiting, 1), xx=True)
        await self.sql("update worker.run set next_at = now() where next_at > now()")

    async def _wrong(self, asked: Asked) -> str | None:
        """What isn't as it must be. None: all is, and nothing of it is left anywhere."""
        ids = list(asked.ids)
        if asked.ids_sql:
            ids = [row[0] for row in await self.sql(asked.ids_sql)]
            if not ids:
                return "nothing has been enqueued"
        noted, runs, rows = (
            await self.sql(
                """select array(select note from effect where id = any($1) order by note),
                array(select distinct status from worker.run where id = any($1)),
                (select count(*) from worker.outbox where id = any($1))""",
                ids,
            )
        )[0]
        wanted = sorted(f"{ids[0]} {effect}" for effect in asked.effects) if asked.ids_sql else sorted(asked.effects)
        if asked.at_least_once:
            noted = sorted(set(noted))
        if len(noted) > len(set(noted)) or set(noted) - set(wanted):
            return f"twice, or unasked: {noted} instead of {wanted}"
        if noted != wanted and not (asked.at_most_once and runs):
            return f"not done: {noted} instead of {wanted}"
        if set(runs) - set(asked.statuses) or (asked.needs_run and not runs):
            return f"the runs are {runs}"
        if rows:
            return f"{rows} rows are left in the outbox"
        return await self._left_in_redis(ids)

    async def _left_in_redis(self, ids: Sequence[str]) -> str | None:
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(f"arq:job:{job_id}", f"arq:in-progress:{job_id}", f"arq:retry:{job_id}")
                pipe.zscore("arq:queue", job_id)
                pipe.zscore("ratchet:leases:arq:queue", job_id)
            left = await pipe.execute()
        return f"Redis has something left of {ids}: {left}" if any(found not in {0, None} for found in left) else None

    async def sql(self, statement: str, *values: object) -> Sequence[Any]:
        return await self.postgres.fetch(statement, *values)


Running = Callable[[Stage], Coroutine[Any, Any, None]]
"""A worker that serves until it is cancelled, or ends by itself."""


async def app_worker(stage: Stage, *, burst: bool = False) -> None:
    """With all its parts, as `worker run` has them."""
    await runtime.run_worker(stage.app, load_settings(**stage.settings), Observers(), burst=burst)


@contextmanager
def lines_are_known() -> Generator[list[AsyncEngine]]:
    """Let each victim know its connections, so that they can be cut, and its lease's thread, so that it can end.

    All have one engine, one after another: to make one, and to fill its caches, takes longer than all the rest.
    """
    start = Leases.start
    engines: list[AsyncEngine] = []
    drivers: list[Any] = []
    brokers: list[ArqRedis] = []

    def keep(dbapi: Any, _record: object) -> None:
        drivers.append(dbapi.driver_connection)

    def known_engine(*args: Any, **kwargs: Any) -> AsyncEngine:
        if not engines:
            engines.append(create_engine(*args, **kwargs))
            event.listen(engines[0].sync_engine, "connect", keep)
        _of_victim().lines.append(lambda: _terminate(drivers))
        return engines[0]

    def known_broker(*args: Any, **kwargs: Any) -> ArqRedis:
        redis = connect_broker(*args, **kwargs)
        brokers.append(redis)
        _of_victim().lines.append(lambda: _abort(redis))
        return redis

    def known_leases(leases: Leases) -> None:
        victim = _of_victim()
        if not victim.is_dead:
            start(leases)
            victim.threads.append(leases._stop.set)
            victim.renewing = leases._renewing

    async def known_pool(*args: Any, **kwargs: Any) -> ArqRedis:
        redis = await create_pool(*args, **kwargs)
        brokers.append(redis)
        _of_victim().lines.append(lambda: _abort(redis))
        return redis

    with (
        patch("worker.runtime.create_engine", known_engine),
        patch("worker.standalone.create_pool", known_pool),
        patch("worker.runtime.connect_broker", known_broker),
        patch.object(Leases, "start", known_leases),
    ):
        yield engines
        for redis in brokers:
            _abort(redis)


def where(tasks: Iterable["asyncio.Task[Any]"]) -> str:
    """What they wait in, from the outermost call to the innermost."""
    told: list[str] = []
    for task in tasks:
        told.append(str(task))
        coroutine: Any = task.get_coro()
        while frame := getattr(coroutine, "cr_frame", None):
            told.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
            coroutine = coroutine.cr_await
    return "\n".join(told)


def _of_victim() -> Victim:
    victim = VICTIM.get()
    assert victim is not None
    return victim


async def _process(running: Coroutine[Any, Any, None]) -> None:
    """Its exit code ends the worker, not the test's loop; the next one is started as a supervisor would."""
    with suppress(SystemExit):
        await running


def _stop_once(task: "asyncio.Task[None]") -> None:
    if not task.cancelling():
        task.cancel()


def _terminate(drivers: list[Any]) -> None:
    while drivers:
        drivers.pop().terminate()


def _abort(redis: ArqRedis) -> None:
    pool: Any = redis.connection_pool
    for connection in [*pool._available_connections, *pool._in_use_connections]:
        if connection._writer is not None:
            connection._writer.transport.abort()
            connection._reader = connection._writer = None
