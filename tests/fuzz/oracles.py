"""What must hold of any bytes at all: asked by hypothesis in `make test`, and by coverage in `make fuzz`."""

import json
from pathlib import Path

from jobs.csv_input import Position
from jobs.csv_rows import Row
from tests.support.csv import read_rows
from worker.errors import Permanent
from worker.wire import MAX_MESSAGE_BYTES, Message, Unreadable, decode, encode, restamp

HEADER = ("email", "name")
MAX_UNPACKED = 1_000_000


def check_message(raw: bytes) -> None:
    """It is a message that can be written and read again, or it is told in one line why it is none."""
    message = decode(raw)
    if isinstance(message, Unreadable):
        check_sentence(message.reason)
        assert message.enqueued_ms < 0
        assert restamp(raw, enqueued_ms=7) == raw
        return
    assert isinstance(json.loads(message.payload), dict)
    assert decode(encode(message)) == message
    again = restamp(raw, enqueued_ms=7)
    assert len(again) <= MAX_MESSAGE_BYTES
    assert decode(again) == Message(message.name, message.payload, 7, from_outbox=True, headers=message.headers)


def check_file(path: Path, size: int) -> None:
    """Its rows stand in their order and are the same in any chunks, or it is refused in one line."""
    small, whole = _rows(path, size), _rows(path, 1_000_000)
    assert small == whole


def _rows(path: Path, size: int) -> list[Row] | str:
    found: list[Row] = []
    position: Position | None = None
    while True:
        try:
            chunk = read_rows(path, HEADER, position, size, max_unpacked=MAX_UNPACKED)
        except Permanent as error:
            check_sentence(str(error))
            return "refused"
        for row in chunk.rows:
            assert len(row.fields) == len(HEADER) or row.fault
            assert "\0" not in "".join(row.fields)
            assert not found or (row.line, row.offset) > (found[-1].line, found[-1].offset)
            found.append(row)
        if chunk.next is None:
            return found
        assert position is None or chunk.next.offset > position.offset
        position = Position.model_validate_json(chunk.next.model_dump_json())


def check_sentence(told: str) -> None:
    assert told
    assert "\n" not in told
    assert len(told) < 2_000
