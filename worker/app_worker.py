"""The worker of an app: several queues, handlers instead of functions, and an end in good order."""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from signal import Signals
from typing import Any

from arq.constants import health_check_key_suffix
from redis.exceptions import RedisError

from worker.consumer import Worker
from worker.engine import Engine
from worker.heartbeat import farewell
from worker.shield import cancel_all

LAST_WORDS_S = 5.0
"""For jobs that are cancelled when the grace is over, to roll back; and again for them to be put back."""


class AppWorker(Worker):
    """Has its jobs run by an engine. Started with `serve`, which leaves nothing running."""

    def __init__(self, functions: Sequence[Any], *, engine: Engine, queues: Sequence[str], **arguments: Any) -> None:
        """`functions` and `arguments` are arq's; of `functions` the names alone count. `queues`: all that it serves."""
        super().__init__(functions, queue_name=queues[0], allow_abort_jobs=True, **arguments)
        self._engine = engine
        self._queues = tuple(queues)
        self._grace_is_over = asyncio.Event()
        self._was_told = False

    async def serve(self) -> None:
        """Run until told to stop, and leave nothing running: what doesn't end within the grace is handed back.

        The handlers of signals stay, for the caller to remove when it has cleaned up. Raises SystemExit where a job has
        cancelled the worker: that mustn't pass for an orderly end.
        """
        self._engine.leases.start()
        self.main_task = asyncio.create_task(self.main(), name="consumer")
        grace = asyncio.create_task(self._grace_is_over.wait())
        try:
            await asyncio.wait([self.main_task, grace], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.allow_pick_jobs = False
            is_cancelled_by_a_job = self._is_cancelled_by_a_job()
            try:
                await cancel_all([self.main_task, grace])
                await self._hand_back()
            finally:
                self._engine.leases.stop()
            with suppress(RedisError, OSError, TimeoutError):  # it runs out by itself
                await asyncio.wait_for(farewell(self.pool, self._name), timeout=1)
            if is_cancelled_by_a_job:
                sys.exit(os.EX_SOFTWARE)
        if not self.main_task.cancelled():
            self.main_task.result()

    def _is_cancelled_by_a_job(self) -> bool:
        """Nobody but `serve` knows the consumer's task, unless by asyncio.all_tasks()."""
        if not self.main_task or not self.main_task.cancelling():
            return False
        hint = "one of these jobs cancels what isn't its own, such as all of asyncio.all_tasks(); others take them up"
        self._log.error("cancelled_by_a_job", job_ids=sorted(self.tasks), hint=hint)
        return True

    async def main(self) -> None:
        """Serve until told to stop; in burst mode, until nothing that this worker knows is due."""
        await self._consume()

    async def heart_beat(self) -> None:
        """When it is time. arq's looks for cron jobs each time, too, of which this worker has none."""
        if time.monotonic() >= self._next_beat:
            await super().heart_beat()

    async def record_health(self) -> None:
        """arq's line for each queue."""
        last = self._last_health_check
        for queue in self._queues:
            self.queue_name, self.health_check_key, self._last_health_check = (
                queue,
                queue + health_check_key_suffix,
                last,
            )
            await super().record_health()

    def drain(self) -> None:
        """Take no more jobs, and end when those that run have ended. A signal still gives its grace."""
        self.allow_pick_jobs = False
        self.wake()

    def handle_sig(self, signum: Signals) -> None:
        """The first signal asks for an orderly stop. Ctrl-C after that cuts the grace short.

        A second SIGTERM doesn't: systemd and Heroku send it to each process, and a supervisor among them passes it on.
        """
        if self._was_told and signum != Signals.SIGINT:
            return
        grace_s = 0 if self._was_told else self._job_completion_wait
        self._was_told, self.allow_pick_jobs = True, False
        self._log.warning("stopping", signal=signum.name, running=len(self.tasks), grace_s=grace_s)
        self.loop.call_later(grace_s, self._grace_is_over.set)
        self.wake()

    handle_sig_wait_for_completion = handle_sig

    async def _hand_back(self) -> None:
        """Cancel what still runs: it is rolled back, and its messages are put back."""
        deaf = await cancel_all(self.tasks.values(), LAST_WORDS_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._acknowledgements.all_sent()
        if deaf:
            hint = "the process ends without them, and their leases run out"
            self._log.error("jobs_ignore_cancellation", job_ids=sorted(self.tasks), hint=hint)
            self._engine.abandon()
