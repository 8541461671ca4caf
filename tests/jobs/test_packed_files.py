"""Files that are packed: as the same file unpacked, whatever the chunks, and bounded."""

import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from backports import zstd

from jobs.csv_input import Position
from jobs.csv_rows import Row
from jobs.lines import MAX_LINE_BYTES
from tests.support.csv import read_rows
from worker.errors import Permanent

HEADER = ("email", "name")
Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {
    ".gz": gzip.compress,
    ".zst": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}
CONTENT = b"".join(
    (
        b"\xef\xbb\xbfemail,name\r\na@x,A\r\n\r\n",
        b'b@x,"B\r\nis ""two"" lines"\r\nc@x,"never closed\r\nd@x,\xff\r\n',
        b"e@x," + b"x" * (MAX_LINE_BYTES + 10),
        b"\r\nf@x,F\r\nlast@x,Last",
    )
)


def chunks(path: Path, size: int, max_unpacked: int = 10_000_000) -> list[list[Row]]:
    found: list[list[Row]] = []
    position: Position | None = None
    while position or not found:
        rows = read_rows(path, HEADER, position, size, max_unpacked=max_unpacked)
        found.append(rows.rows)
        position = rows.next
    return found


@pytest.fixture(params=PACKS)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_rows_are_those_of_the_file_unpacked(tmp_path: Path, suffix: str, size: int) -> None:
    plain, packed = tmp_path / "users.csv", tmp_path / f"users.csv{suffix}"
    plain.write_bytes(CONTENT)
    packed.write_bytes(PACKS[suffix](CONTENT))
    assert chunks(packed, size) == chunks(plain, size)
    assert len([row for chunk in chunks(packed, size) for row in chunk if not row.fault]) == 4


def test_parts_that_were_packed_one_by_one_are_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.csv{suffix}"
    path.write_bytes(PACKS[suffix](b"email,name\na@x,A\nb@") + PACKS[suffix](b"x,B\n"))
    assert [row.fields for row in chunks(path, 10)[0]] == [("a@x", "A"), ("b@x", "B")]


def test_what_a_file_may_unpack_to_is_bounded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.csv{suffix}"
    path.write_bytes(PACKS[suffix](b"email,name\n" + b"a@x,A\n" * 200_000))
    assert path.stat().st_size < 10_000
    with pytest.raises(Permanent, match=r"unpacks to more than 1,000,000 bytes; raise WORKER_FILES_MAX_UNPACKED_MB"):
        chunks(path, 1_000_000, max_unpacked=1_000_000)
    assert sum(map(len, chunks(path, 1_000_000, max_unpacked=2_000_000))) == 200_000


def test_a_line_without_end_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.csv{suffix}"
    path.write_bytes(PACKS[suffix](b"email,name\n" + b"\0" * 50_000_000))
    with pytest.raises(Permanent, match="unpacks to more than"):
        chunks(path, 10)


def cut_off(packed: bytes) -> bytes:
    return packed[:-20]


def overwritten(packed: bytes) -> bytes:
    return packed[:60] + b"?" * 40 + packed[100:]


@pytest.mark.parametrize("damage", [cut_off, overwritten])
def test_a_broken_file_is_refused_with_the_place(tmp_path: Path, suffix: str, damage: Pack) -> None:
    path = tmp_path / f"users.csv{suffix}"
    content = b"email,name\n" + b"".join(b"user%d@x,User %d\n" % (n, n * n) for n in range(1_000))
    path.write_bytes(damage(PACKS[suffix](content)))
    with pytest.raises(Permanent, match=rf"'users\.csv{suffix}' can't be unpacked behind byte .*; put a whole one in"):
        chunks(path, 100)


def test_what_was_never_packed_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.csv{suffix}"
    path.write_bytes(b"email,name\na@x,A\n")
    with pytest.raises(Permanent, match="can't be unpacked behind byte 0"):
        chunks(path, 10)
