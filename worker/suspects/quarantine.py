"""Where suspects run: in a few children of the worker, together at first, and alone where a child dies of them.

Where a child dies with several, each of them may be the culprit. They go on in smaller companies, and the innocent ones
are soon done; who is alone in a fresh process when that dies is guilty. (Group testing: R. Dorfman, "The Detection of
Defective Members of Large Populations", 1943.)
"""

import asyncio
import os
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog

from worker.delivery import Delivery, Report
from worker.executor import Executor
from worker.outcome import OFFER_AGAIN, Final, Released
from worker.suspects.child import LAST_WORDS_S, LOOK_EVERY_S, Child
from worker.suspects.death import Death, Deaths, ProcessDeath, Suspect
from worker.wire import Message, decode

CHILDREN = 2
"""At once; each holds as much memory as a worker that is idle."""
COMPANY = 10
"""Suspects that begin together in one child, which needs a connection for each."""
HELPERS = 2
"""Connections of a child beyond one a job: to end zombies, and to see whether PostgreSQL is there."""
CONNECTIONS = CHILDREN * (COMPANY + HELPERS)
"""That the children of one worker take at most."""
DIVIDED_BY = 4
"""A company, by the death of its process. Starting processes is what it costs, so from ten it goes to two, then one."""

MAX_GUILTY = 1_000
"""That are remembered. Another worker may have ended them meanwhile."""


class Quarantine:
    """Of one worker. Runs its suspects; what is none goes to the executor."""

    def __init__(self, executor: Executor, deaths: Deaths, command: Sequence[str], grace: timedelta) -> None:
        """`command` starts a child. `grace`: how long a job may outlive its timeout before its child is ended."""
        self._executor = executor
        self._deaths = deaths
        self._command = command
        self._grace = grace
        self._children: dict[asyncio.Task[None], Child] = {}
        """By their lives, which end with them."""
        self._guilty: set[tuple[str, int]] = set()
        """Of whom a child has died: they disturb no company again."""
        # Only this process holds the pipe's other end: when it is gone, so are its children.
        self._lifeline, self._held = os.pipe()
        self._log = structlog.get_logger("worker.suspects")

    def execute(self, delivery: Delivery) -> Coroutine[Any, Any, Report]:
        """Carry out one delivery, as the executor would."""
        return self._execute(delivery) if delivery.is_suspect else self._executor.execute(delivery)

    async def _execute(self, delivery: Delivery) -> Report:
        raw = delivery.message
        message = decode(raw) if raw is not None else None
        if raw is None or not isinstance(message, Message) or message.name not in self._executor.handlers:
            return await self._executor.execute(delivery)  # which calls no handler
        self._log.info("suspect", job=message.name, job_id=delivery.job_id, hint="it runs in a process of its own")
        key = delivery.job_id, message.enqueued_ms
        suspect = Suspect(delivery, raw, message, 1 if key in self._guilty else COMPANY)
        report: Report | None = None
        while report is None:
            report = await self._try(suspect)
        self._guilty.discard(key)
        if report.has_died and not isinstance(report.outcome, Final) and len(self._guilty) < MAX_GUILTY:
            self._guilty.add(key)
        return report

    async def _try(self, suspect: Suspect) -> Report | None:
        """In one child. None: again, in a smaller company."""
        delivery = suspect.delivery
        try:
            child = await self._place(suspect)
            if child is not None:
                return await child.run(suspect)
        except OSError as error:
            return self._not_started(str(error))
        except ProcessDeath as died:
            death = died.death
            if not delivery.hold.is_stopping() and not delivery.hold.is_aborted():
                return await self._judge(suspect, death)
        if delivery.hold.is_aborted():
            return await self._executor.execute(delivery)  # which records it, and calls no handler
        return Report(Released("the worker stops"), has_begun=False)

    async def _judge(self, suspect: Suspect, death: Death) -> Report | None:
        if not death.was_ready:
            return self._not_started(death.how)
        if death.company == 1 and not death.had_others:
            return await self._deaths.record(suspect, death)
        suspect.company = max(1, min(suspect.company, death.company) // DIVIDED_BY)
        return None

    async def _place(self, suspect: Suspect) -> Child | None:
        """A child that has a place for it. None: the worker stops, or the job was aborted. Raises OSError."""
        while True:
            hold = suspect.delivery.hold
            hold.begins(self._grace)
            if hold.is_stopping() or hold.is_aborted():
                return None
            children = [child for child in self._children.values() if not child.is_closed]
            for child in children:
                if child.takes(suspect):
                    return child
            if len(children) < CHILDREN:
                return self._start()
            idle = next((child for child in children if child.is_idle), None)
            if idle is not None:  # it has run others, and this one needs a fresh one
                idle.close()
                return self._start()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(LOOK_EVERY_S)

    def _start(self) -> Child:
        child = Child(self._command, self._lifeline, self._grace)
        self._children[child.life] = child
        child.life.add_done_callback(self._children.pop)
        return child

    def _not_started(self, reason: str) -> Report:
        """Nobody's fault but the system's or the settings'; the suspect waits."""
        hint = "a process for suspects could not be started; they are offered again"
        self._log.error("suspects_not_started", reason=reason, hint=hint)
        return Report(Released("no process could be started for it", OFFER_AGAIN), has_begun=False)

    async def close(self) -> None:
        """End all children. What still runs in them is rolled back."""
        for end in Child.close, Child.kill:
            for child in self._children.values():
                end(child)
            if self._children:
                await asyncio.wait(self._children, timeout=LAST_WORDS_S)
        os.close(self._lifeline)
        os.close(self._held)
