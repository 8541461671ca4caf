"""What happens at a site: nothing, or a strike. A killed worker does nothing any more, whatever awaits it comes to.

Strikes are: `refuse` (the operation isn't done, its error is raised), `lose` (it is done, but its reply is lost: the
same error), `cut` (all connections break under it), `cancel` (the worker is stopped in mid-operation), `kill` (as
SIGKILL: its connections close, and it takes no further step).
"""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, get_args

import asyncpg
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

Mode = Literal["refuse", "lose", "cut", "cancel", "kill"]
MODES: tuple[Mode, ...] = get_args(Mode)
Origin = Literal["asyncio", "redis", "asyncpg", "sqlalchemy", "handler", "worker"]
"""Whose operation it is: what can go wrong with it depends on that."""

NO_SERVER: tuple[Mode, ...] = ("cancel", "kill")
"""What can happen to a wait within the process: it has no reply that could be lost."""


@dataclass(frozen=True, slots=True)
class Strike:
    site: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.mode} at {self.site}"


class Killed(BaseException):
    """Raised at each await of a worker that was killed. No handler of errors catches it."""


@dataclass
class Victim:
    """A worker that may be struck, as its awaits see it."""

    strikes: list[Strike] = field(default_factory=list[Strike])
    """To come, one after another."""
    reached: dict[str, Origin] = field(default_factory=dict[str, Origin])
    is_dead: bool = False
    lines: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])
    """Called to cut its connections."""
    threads: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])
    """Called to end its threads, which no await stands in the way of."""
    renewing: Event | None = None
    """Of its lease's thread, once that runs."""
    stop: Callable[[], object] = lambda: None

    def strike(self, site: str, origin: Origin) -> Mode | None:
        """Note that it came to `site`; what happens to it there."""
        self.reached.setdefault(site, origin)
        if self.strikes and self.strikes[0].site == site:
            return self.strikes.pop(0).mode
        return None

    def kill(self) -> None:
        self.is_dead = True
        for end in self.threads:
            end()
        self.cut()

    def cut(self) -> None:
        for cut in self.lines:
            cut()

    def cancel(self) -> None:
        """It is asked to stop, and the task that stands at the site is told first."""
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        self.stop()


VICTIM: ContextVar[Victim | None] = ContextVar("victim", default=None)
"""Of the worker's tasks; None in those of the test."""


class Strikes:
    """The points of `sites.instrumented`."""

    async def at(self, site: str, awaitable: Any) -> Any:
        victim = VICTIM.get()
        if victim is None:
            return await awaitable
        if victim.is_dead:
            _drop(awaitable)
            raise Killed
        origin = _origin(awaitable)
        match victim.strike(site, origin):
            case "refuse":
                _drop(awaitable)
                raise _error(site, origin)
            case "kill":
                _drop(awaitable)
                victim.kill()
                raise Killed
            case mode:
                _under_way(victim, mode)
        try:
            result = await awaitable
        except BaseException:
            if victim.is_dead:
                raise Killed from None
            raise
        if victim.is_dead:
            raise Killed
        if mode == "lose":
            await _give_back(result)
            raise _error(site, origin)
        return result

    def around(self, site: str, manager: Any) -> Any:
        return _Around(site, manager)

    async def each(self, site: str, iterable: Any) -> AsyncIterator[Any]:
        iterator = aiter(iterable)
        while True:
            try:
                item = await self.at(site, anext(iterator))
            except StopAsyncIteration:
                return
            yield item


class _Around:
    """An async context manager whose two awaits are sites."""

    def __init__(self, site: str, manager: Any) -> None:
        self._site = site
        self._manager = manager

    async def __aenter__(self) -> Any:
        site, victim = f"{self._site}.enter", VICTIM.get()
        if victim is None:
            return await self._manager.__aenter__()
        if victim.is_dead:
            raise Killed
        origin = _origin(self._manager)
        match victim.strike(site, origin):
            case "refuse":
                raise _error(site, origin)
            case "kill":
                victim.kill()
                raise Killed
            case mode:
                _under_way(victim, mode)
        entered = await self._manager.__aenter__()
        if mode == "lose":
            error = _error(site, origin)
            await self._manager.__aexit__(type(error), error, None)
            raise error
        return entered

    async def __aexit__(self, *raised: object) -> Any:
        site, victim = f"{self._site}.exit", VICTIM.get()
        if victim is None:
            return await self._manager.__aexit__(*raised)
        origin = _origin(self._manager)
        mode = None if victim.is_dead else victim.strike(site, origin)
        if mode == "kill":
            victim.kill()
        if victim.is_dead:
            # Its memory is cleared: nothing reaches a server, since the connections are closed.
            killed = Killed()
            with suppress(BaseException):
                await self._manager.__aexit__(Killed, killed, None)
            raise killed
        # That a cleaning up doesn't happen at all is what a kill is; in a process that lives its connection breaks.
        _under_way(victim, "cut" if mode == "refuse" else mode)
        result = await self._manager.__aexit__(*raised)
        if victim.is_dead:
            raise Killed
        if mode == "lose":
            raise _error(site, origin)
        return result


def _under_way(victim: Victim, mode: Mode | None) -> None:
    if mode == "cut":
        victim.cut()
    elif mode == "cancel":
        victim.cancel()


def _drop(awaitable: Any) -> None:
    """It is never awaited, and that is meant."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()


async def _give_back(result: Any) -> None:
    """A client that didn't get its connection doesn't keep it either."""
    if isinstance(result, AsyncConnection):
        await result.close()
    elif isinstance(result, asyncpg.Connection):
        result.terminate()


def _origin(awaitable: Any) -> Origin:
    of: Any = getattr(awaitable, "gen", awaitable)  # what @asynccontextmanager made
    code = getattr(of, "cr_code", None) or getattr(of, "ag_code", None)
    file = code.co_filename if code else getattr(sys.modules.get(type(of).__module__), "__file__", None) or ""
    servers: tuple[Origin, ...] = ("redis", "asyncpg", "sqlalchemy", "worker")
    for part in servers:
        if f"/{part}/" in file:
            return part
    return "handler" if "/tests/" in file else "asyncio"


OF_REDIS = ("acknowledgements", "app_worker", "claims", "consumer", "heartbeat", "lease", "lease_hold", "wake")
"""Modules that know no other server: so what fails below their own calls is Redis."""


def _error(site: str, origin: Origin) -> Exception:
    told = f"struck at {site}"
    if origin == "handler":
        return RuntimeError(told)
    if origin == "redis" or (origin == "worker" and site.partition(":")[0] in OF_REDIS):
        return RedisConnectionError(told)
    lost = asyncpg.ConnectionDoesNotExistError(told)
    return lost if origin == "asyncpg" else DBAPIError(None, None, lost)
