"""A child as its worker sees it: what is no fault of a job counts for none."""

import asyncio
import socket
import struct
import sys
from datetime import timedelta
from os import close, pipe

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.consumer.jobs import PING
from tests.runtime.bench import Grip
from worker.app import App
from worker.availability import Availability
from worker.delivery import Delivery, NoHold
from worker.executor import Executor
from worker.handler import bind
from worker.outcome import OFFER_AGAIN, Released
from worker.reporting.observer import Observers
from worker.setback import Setbacks
from worker.settings import load_settings
from worker.suspects import child as module
from worker.suspects import frames
from worker.suspects.child import Child
from worker.suspects.death import Deaths, ProcessDeath, Suspect
from worker.suspects.main import serve
from worker.suspects.quarantine import Quarantine
from worker.wire import Message, encode

MESSAGE = Message("ping", b"{}", 1)
TALKS_NONSENSE = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[2]))
channel.sendall(bytes.fromhex(sys.argv[1]))
channel.recv(1_000_000)
channel.recv(1)
"""


async def test_a_child_that_isnt_understood_is_no_death_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_S", 0)
    said = b'["Nonsense",{}]'
    framed = struct.pack(">I", len(said)) + said
    lifeline, held = pipe()
    raw = encode(MESSAGE)
    child = Child([sys.executable, "-c", TALKS_NONSENSE, framed.hex()], lifeline, timedelta(seconds=60))
    with pytest.raises(ProcessDeath) as died:
        await child.run(Suspect(Delivery("a", "arq:queue", raw, NoHold(), 1, 1), raw, MESSAGE, 1))
    await child.life
    for end in lifeline, held:
        close(end)
    assert not died.value.death.was_ready


@pytest.mark.parametrize("aborted", [False, True])
async def test_one_that_answers_nothing_is_killed_when_the_worker_stops_though_it_was_aborted_before(
    monkeypatch: pytest.MonkeyPatch, *, aborted: bool
) -> None:
    monkeypatch.setattr(module, "LAST_WORDS_S", 0)
    lifeline, held = pipe()
    raw, grip = encode(MESSAGE), Grip(aborted=aborted)
    child = Child([sys.executable, "-c", "import time; time.sleep(60)"], lifeline, timedelta(seconds=60))
    running = asyncio.create_task(child.run(Suspect(Delivery("a", "arq:queue", raw, grip, 1, 1), raw, MESSAGE, 1)))
    await asyncio.sleep(0)
    running.cancel()
    if aborted:
        await asyncio.sleep(0)
        grip.stopping = True
        running.cancel()
    with pytest.raises(ProcessDeath):
        await asyncio.wait_for(running, 10)
    await child.life
    for end in lifeline, held:
        close(end)


async def test_a_suspect_that_no_child_could_be_started_for_has_not_begun(engine: AsyncEngine) -> None:
    """Its rate counts no other start of it, when it is offered again."""
    raw, handlers, availability = encode(MESSAGE), bind([PING]), Availability(engine)
    executor = Executor(handlers, engine, Observers(), availability, "a test")
    deaths = Deaths(engine, Setbacks(engine, availability, "a test"), Observers(), handlers)
    quarantine = Quarantine(executor, deaths, ["/nowhere"], timedelta(seconds=60))
    report = await quarantine.execute(Delivery("a", "arq:queue", raw, NoHold(), 1, 1, is_suspect=True))
    await quarantine.close()
    await availability.close()
    assert report.outcome == Released("no process could be started for it", OFFER_AGAIN)
    assert not report.has_begun


async def test_an_answer_that_comes_when_its_job_has_ended_ends_nobody() -> None:
    ours, theirs = socket.socketpair()
    settings = load_settings(database_url="postgresql:///nowhere")
    serving = asyncio.create_task(serve(App([]), settings, Observers(), theirs))
    reader, writer = await asyncio.open_connection(sock=ours)
    writer.write(frames.pack(frames.Held(7, is_ours=True)))
    writer.write(frames.pack(frames.Start(8, "a", "arq:queue", encode(MESSAGE).decode(), 1, 1, 0)))
    said = frames.read(reader)
    assert await anext(said) == frames.Ready()
    ended = await anext(said)
    assert isinstance(ended, frames.Ended)
    assert (ended.number, ended.outcome) == (8, "Released")  # nobody knows a job of that name
    writer.close()
    await serving
