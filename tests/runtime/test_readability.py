"""Messages that can't be run: nothing of them is deleted, and no pickle is ever loaded."""

import json
import pickle
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.runtime.bench import Bench, Note, effect
from worker.errors import UnknownJob
from worker.handler import Handler
from worker.job import Job
from worker.outcome import Completed, Dead, Duplicate, Released
from worker.wire import UNREADABLE_NAME


class Move(Job, name="move"):
    """A job with fields that may not fit."""

    box: int
    to: str = "here"


async def moving(job: Move, session: AsyncSession) -> int:
    await effect(session, f"{job.box} {job.to}")
    return job.box


MOVING = Handler(Move, moving)


def envelope(**parts: Any) -> bytes:
    """A message as arq would write it; `parts` replace its own, None leaves one out."""
    message: dict[str, Any] = {"t": None, "f": "move", "a": [], "k": {"box": 1}, "et": 1_700_000_000_000, **parts}
    return json.dumps({name: part for name, part in message.items() if part is not None}).encode()


class Bomb:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self._path, "w")


async def test_a_payload_that_doesnt_validate_is_dead_at_once_with_its_bytes_and_error_kept(bench: Bench) -> None:
    delivery = bench.delivery(envelope(k={"box": "many", "to": "hunter2"}))
    outcome = await bench.run(MOVING, delivery)
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith("InvalidPayload: The payload does not fit move: box: ")
    run = await bench.run_of(delivery)
    assert (run.status, run.name, run.error, bytes(run.message)) == ("dead", "move", outcome.error, delivery.message)
    assert bench.told.attempts == []  # the handler was never called


async def test_the_error_of_an_invalid_payload_quotes_none_of_it(bench: Bench) -> None:
    outcome = await bench.run(MOVING, bench.delivery(envelope(k={"box": "hunter2", "to": 5})))
    ((kept,),) = await bench.all("select error || traceback from worker.attempt")
    assert "hunter2" not in kept + repr(outcome)


async def test_an_invalid_payload_from_the_outbox_takes_its_row(bench: Bench) -> None:
    delivery = await bench.enqueued(Note())
    old = json.loads(delivery.message or b"")
    broken = json.dumps({**old, "k": {"text": 7}}).encode()
    assert isinstance(await bench.run(Handler(Note, _never), replace(delivery, message=broken)), Dead)
    assert await bench.rows() == 0


async def _never(job: Note, session: AsyncSession) -> None:
    raise AssertionError("the handler was called")


async def test_a_pickle_is_dead_at_once_and_never_loaded(bench: Bench, tmp_path: Any) -> None:
    mine = tmp_path / "loaded"
    delivery = bench.delivery(pickle.dumps({"f": "move", "a": (), "k": {"box": Bomb(str(mine))}, "et": 1, "t": 1}))
    outcome = await bench.run(MOVING, delivery)
    assert isinstance(outcome, Dead)
    assert "enqueue with a JSON serializer" in outcome.error
    assert not mine.exists()
    run = await bench.run_of(delivery)
    assert (run.status, run.name, bytes(run.message)) == ("dead", UNREADABLE_NAME, delivery.message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"", "no JSON"),
        (b"\x00\xff", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        (envelope(f=None), "no job name"),
        (envelope(f="x" * 201), "no job name"),
        (envelope(a=[1]), "positional arguments"),
        (envelope(k=None), "no object in 'k'"),
        (envelope(k=[1]), "no object in 'k'"),
        (envelope(et=None), "no enqueue time"),
        (envelope(et="soon"), "no enqueue time"),
        (envelope(et=1.5), "no enqueue time"),
        (envelope(et=True), "no enqueue time"),
        (envelope(k={"box": 1, "to": "x" * 2_000_000}), "the limit is"),
    ],
)
async def test_what_cant_be_read_is_dead_at_once_and_says_what_to_do(bench: Bench, message: bytes, told: str) -> None:
    delivery = bench.delivery(message)
    outcome = await bench.run(MOVING, delivery)
    assert isinstance(outcome, Dead)
    assert told in outcome.error
    run = await bench.run_of(delivery)
    assert (run.status, bytes(run.message)) == ("dead", message)
    assert await bench.run(MOVING, delivery) == Duplicate(None, failed=outcome.error)


async def test_two_unreadable_messages_of_one_id_are_two_runs(bench: Bench) -> None:
    for message in (b"one", b"two", b"one"):
        await bench.run(MOVING, bench.delivery(message, job_id="same"))
    kept = await bench.all("select message, enqueued_ms < 0 from worker.run order by message")
    assert kept == [(b"one", True), (b"two", True)]


async def test_an_unreadable_message_from_the_outbox_takes_its_row_by_its_bytes(bench: Bench) -> None:
    """Nested too deep for the parser, say: PostgreSQL's jsonb takes more."""
    ((chosen,),) = await bench.all(
        "select worker.enqueue('move', jsonb_build_object('box', (repeat('[', 300) || repeat(']', 300))::jsonb))"
    )
    await bench.enqueued(Note())  # somebody else's row
    row = await bench.one("select message from worker.outbox where id = :id", id=chosen)
    assert isinstance(await bench.run(MOVING, bench.delivery(bytes(row.message), job_id=chosen)), Dead)
    assert await bench.all("select name from worker.outbox") == [("note",)]


async def test_extra_keys_of_a_payload_are_ignored(bench: Bench) -> None:
    payload = {"box": 3, "new": 1, "_carrier": {"traceparent": "00-1"}, "_headers": {"a": "b"}}
    assert await bench.run(MOVING, bench.delivery(envelope(k=payload, x=1))) == Completed(3)


async def test_a_job_under_its_old_name_is_run_by_the_handler_of_the_new_one(bench: Bench) -> None:
    class Renamed(Job, name="carry", aliases=("move",)):
        box: int

    async def carrying(job: Renamed, session: AsyncSession) -> int:
        return job.box

    assert await bench.run(Handler(Renamed, carrying), bench.delivery(envelope())) == Completed(1)


async def test_an_unknown_job_stays_queued_is_offered_again_and_leaves_no_trace(bench: Bench) -> None:
    outcome = await bench.run(Handler(Note, _never), bench.delivery(envelope()))
    assert isinstance(outcome, Released)
    assert outcome.delay > timedelta(0)
    assert "'move'" in outcome.reason
    assert await bench.runs() == []


async def test_an_unknown_job_is_warned_of_once_a_name(bench: Bench) -> None:
    executor = bench.executor(Handler(Note, _never))
    for name in ("move", "move", "carry", "move"):
        await executor.execute(bench.delivery(envelope(f=name)))
    assert [str(fault) for fault in bench.told.faults if isinstance(fault, UnknownJob)] == [
        f"No handler is bound to the job '{name}'; deploy a worker that has one, or add an alias."
        for name in ("move", "carry")
    ]


async def test_an_id_without_a_message_is_left_to_the_sweep_if_it_has_a_row_or_an_unfinished_run(bench: Bench) -> None:
    with_row = await bench.enqueued(Note())
    lost = replace(with_row, message=None)
    assert isinstance(await bench.run(MOVING, lost), Released)
    await bench.all("delete from worker.outbox")
    assert await bench.run(MOVING, lost) == Dead("JobExpired: job expired")
    for status, finished in (("snoozed", "null"), ("completed", "now()")):
        await bench.all("delete from worker.run")
        await bench.all(
            "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, finished_at) "
            f"values (:id, 1, 'note', '', '{status}', true, {finished})",
            id=lost.job_id,
        )
        assert isinstance(await bench.run(MOVING, lost), Released if finished == "null" else Dead)
