"""The child: runs what its worker gives it, and ends with it. `python -m worker.suspects.main APP FD FD FD`."""

import asyncio
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from worker import event_loop
from worker.app import App
from worker.availability import Availability
from worker.cli.loading import load_app
from worker.database import create_engine
from worker.delivery import Delivery, Report
from worker.executor import Executor
from worker.garbage import settle_heap
from worker.lag import lag_watched
from worker.lifeline import hold_on
from worker.lifespan import opened
from worker.outcome import OFFER_AGAIN, Released
from worker.reporting.logs import tell_loop_errors
from worker.reporting.observer import Observer
from worker.reporting.start import start_reporting
from worker.runtime import worker_name
from worker.settings import Settings, load_settings
from worker.shield import cancel_all
from worker.suspects import frames
from worker.suspects.quarantine import COMPANY, HELPERS

OUT_OF_MEMORY = "500"
"""Of 1,000: where memory is out the kernel ends this process rather than the worker."""


def main() -> None:
    """Serve one worker until it closes the channel or is gone."""
    name, channel, lifeline, trace = sys.argv[1], *map(int, sys.argv[2:])
    for fd in channel, lifeline, trace:
        os.set_inheritable(fd, False)  # noqa: FBT003 - os's signature
    for signum in signal.SIGTERM, signal.SIGINT:
        signal.signal(signum, lambda _signum, _frame: None)  # sent to each process of a worker, which tells us itself
    faulthandler.enable(trace)
    hold_on(lifeline, patience_s=0)
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY)
    settings = load_settings(app=name)
    app = load_app(settings.app)
    observer = start_reporting(settings, app.schedule)
    settle_heap()
    event_loop.run(serve(app, settings, observer, socket.socket(fileno=channel)))


async def serve(app: App, settings: Settings, observer: Observer, channel: socket.socket) -> None:
    """Run what comes through `channel` until it is closed."""
    tell_loop_errors(asyncio.get_running_loop())
    reader, writer = await asyncio.open_connection(sock=channel)
    url = settings.database_url.get_secret_value()
    engine = create_engine(url, pool_size=COMPANY + HELPERS, pgbouncer=settings.pgbouncer)
    availability = Availability(engine)
    executor = Executor(app.handlers, engine, observer, availability, worker_name(), ceiling=settings.ceiling)
    ward = _Ward(executor, observer, lambda frame: writer.write(frames.pack(frame)))
    try:
        with lag_watched():
            async with opened(app.lifespan, observer):
                writer.write(frames.pack(frames.Ready()))
                async for frame in frames.read(reader):
                    ward.hear(frame)
                await ward.end()
    finally:
        writer.close()
        await availability.close()
        await engine.dispose()


class _Ward:
    """What runs here."""

    def __init__(self, executor: Executor, observer: Observer, send: Callable[[frames.Frame], None]) -> None:
        self._executor = executor
        self._observer = observer
        self._send = send
        self._holds: dict[int, _Hold] = {}
        self._was_told_to_stop = False
        self.tasks: dict[int, asyncio.Task[Report]] = {}

    async def end(self) -> None:
        """The worker is gone, or wants no more."""
        self._was_told_to_stop = True
        await cancel_all(self.tasks.values())

    def hear(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Start(number):
                self._start(number, frame)
            case frames.Cancel(number, aborted):
                self._was_told_to_stop |= not aborted
                if number in self.tasks:
                    self._holds[number].aborted |= aborted
                    self.tasks[number].cancel()
            case frames.Stop():
                self._was_told_to_stop = True
            case frames.Held(number, is_ours):
                if number in self._holds:  # the job may have ended meanwhile
                    self._holds[number].answer(is_ours=is_ours)
            case _:
                raise AssertionError(f"A worker said {frame}.")

    def _start(self, number: int, start: frames.Start) -> None:
        self._holds[number] = hold = _Hold(number, self._send, lambda: self._was_told_to_stop)
        times = start.delivered_ms, start.due_ms
        message = start.message.encode("latin-1")
        delivery = Delivery(start.job_id, start.queue, message, hold, *times, start.failures, is_suspect=True)
        task = asyncio.create_task(self._executor.execute(delivery))
        self.tasks[number] = task
        task.add_done_callback(partial(self._ended, number))

    def _ended(self, number: int, task: asyncio.Task[Report]) -> None:
        del self.tasks[number], self._holds[number]
        if task.cancelled():
            report = Report(Released("the worker stops"))
        elif error := task.exception():
            self._observer.fault("suspects", error)
            report = Report(Released("the runtime failed", OFFER_AGAIN))
        else:
            report = task.result()
        self._send(frames.end_of(number, report))


class _Hold:
    """The worker's hold on one delivery, at the other end of the channel."""

    def __init__(self, number: int, send: Callable[[frames.Frame], None], is_stopping: Callable[[], bool]) -> None:
        self._number = number
        self._send = send
        self._answers: list[asyncio.Future[bool]] = []
        self.is_stopping = is_stopping
        self.aborted = False

    async def is_ours(self) -> bool:
        self._answers.append(asyncio.get_running_loop().create_future())
        self._send(frames.AsksHeld(self._number))
        return await self._answers[-1]

    def answer(self, *, is_ours: bool) -> None:
        answer = self._answers.pop(0)
        if not answer.done():
            answer.set_result(is_ours)

    def begins(self, timeout: timedelta) -> None:
        self._send(frames.Begins(self._number, timeout.total_seconds()))

    def is_aborted(self) -> bool:
        return self.aborted

    def tells_of_stops(self) -> bool:
        return True

    def shares_slot(self) -> None:
        """The worker doesn't mind: the suspect has a slot of its own."""

    def takes_slot(self) -> None:
        """It has it already."""


if __name__ == "__main__":
    main()
