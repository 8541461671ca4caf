import csv
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.csv_closing import Closing
from jobs.csv_input import Position
from jobs.csv_rows import MAX_ROW_LINES, Row
from jobs.lines import LINES_AHEAD, MAX_LINE_BYTES, Lines
from tests.support.csv import read_rows
from worker.errors import Permanent

HEADER = ("email", "name")
MAX_UNPACKED = 10_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.csv"


def read(path: Path, content: bytes, size: int = 1_000, together: int | None = None) -> list[Row]:
    """All rows, in chunks of `size`."""
    path.write_bytes(content)
    return [row for chunk in chunks(path, size, together) for row in chunk]


def chunks(path: Path, size: int, together: int | None = None) -> list[list[Row]]:
    found: list[list[Row]] = []
    position: Position | None = None
    while True:
        rows = read_rows(path, HEADER, position, size, together=together, max_unpacked=MAX_UNPACKED)
        found.append(rows.rows)
        if rows.next is None:
            return found
        # A cursor is JSON between two chunks.
        position = Position.model_validate_json(rows.next.model_dump_json())


def told(rows: Sequence[Row]) -> list[tuple[int, tuple[str, ...] | str]]:
    return [(row.line, row.fault or row.fields) for row in rows]


@pytest.mark.parametrize("size", [1, 2, 1_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_rows_know_their_lines_whatever_the_chunks(path: Path, size: int, end: bytes, bom: bytes) -> None:
    lines = [b"email,name", b" a@x , Ada ", b"", b'b@x,"Bo', b'b, ""the"" Builder"', b"c@x,\xc3\xa9"]
    assert told(read(path, bom + end.join(lines), size)) == [
        (2, ("a@x", "Ada")),
        (4, ("b@x", f'Bo{end.decode()}b, "the" Builder')),
        (6, ("c@x", "é")),
    ]


@pytest.mark.parametrize("size", [1, 1_000])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"only one", "has 1 fields where 2 are expected"),
        (b"a@x,Ada,more", "has 3 fields where 2 are expected"),
        (b"a@x,\xff\xfe", "is not UTF-8"),
        (b"a@x,A\0da", "holds a NUL character"),
        (b'a@x,"Ada" Lovelace', "has misplaced quotes or line breaks"),
        (b'a@x,"Ada', "has a quoted field that is never closed"),
        (b"a@x," + b"x" * MAX_LINE_BYTES, f"has a line of {MAX_LINE_BYTES:,} bytes or more"),
        (b"a@x,A\rda", "has misplaced quotes or line breaks"),
    ],
)
def test_a_bad_row_costs_itself_alone(path: Path, size: int, bad: bytes, reason: str) -> None:
    rows = read(path, b"email,name\nfirst@x,First\n" + bad + b"\nlast@x,Last\n", size)
    assert told(rows) == [(2, ("first@x", "First")), (3, reason), (4, ("last@x", "Last"))]
    assert rows[1].raw == (bad + b"\n")[:MAX_LINE_BYTES]


def test_a_quote_that_is_never_closed_swallows_no_rows(path: Path) -> None:
    good = [f"user{number}@x,User\n".encode() for number in range(MAX_ROW_LINES + 5)]
    rows = read(path, b'email,name\nbad@x,"Bad\n' + b"".join(good))
    assert [row.fields[0] for row in rows[1:]] == [f"user{number}@x" for number in range(MAX_ROW_LINES + 5)]
    assert rows[0].fault == "has a quoted field that is never closed"


def note(end: bytes, *, lines: int = MAX_ROW_LINES + 20, of: bytes = b"user@x,User") -> bytes:
    """A quoted field of so many lines, each of which would be a row by itself."""
    return b'a@x,"Dear' + end + (of + end) * (lines - 2) + b'""Yours"""' + end


@pytest.mark.parametrize("size", [1, 1_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("long", "reason"),
    [
        ({}, f"has more than {MAX_ROW_LINES} lines"),
        ({"lines": 5, "of": b"user@x," + b"x" * 50_000}, "has a field of more than 131,072 characters"),
        ({"of": b"user@x," + b"x" * 50_000}, "has a field of more than 131,072 characters"),
        ({"lines": 5, "of": b"user@x,\xff"}, "is not UTF-8"),
        ({"lines": 5, "of": b"user@x,\0"}, "holds a NUL character"),
        ({"lines": 5, "of": b"user@x," + b"x" * MAX_LINE_BYTES}, f"has a line of {MAX_LINE_BYTES:,} bytes or more"),
    ],
)
def test_no_line_of_a_quoted_field_that_is_closed_is_a_row(
    path: Path, size: int, end: bytes, long: Any, reason: str
) -> None:
    field = note(end, **long)
    rows = read(path, b"email,name\n" + field + b"b@x,B\n", size)
    assert told(rows) == [(2, reason), (2 + field.count(b"\n"), ("b@x", "B"))]
    assert rows[0].raw == field


def test_nor_is_one_of_a_row_whose_first_line_is_too_long(path: Path) -> None:
    field = b'a@x,"' + b"x" * 2 * MAX_LINE_BYTES + b'\nuser@x,User\n"\n'
    rows = read(path, b"email,name\n" + field + b"b@x,B\n")
    assert told(rows) == [(2, f"has a line of {MAX_LINE_BYTES:,} bytes or more"), (5, ("b@x", "B"))]
    assert rows[0].raw == field


@pytest.mark.parametrize("bound", ["MAX_SPAN_BYTES", "MAX_SPAN_LINES"])
def test_a_quote_that_is_closed_too_far_behind_swallows_no_rows(
    path: Path, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"jobs.csv_closing.{bound}", 110)
    rows = read(path, b"email,name\n" + note(b"\n"))
    assert told(rows[:2]) == [(2, "has a quoted field that is never closed"), (3, ("user@x", "User"))]
    assert len(rows) == MAX_ROW_LINES + 20


def test_a_closing_quote_is_looked_for_once_however_many_are_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line leaves its last field open, whether it begins inside of quotes or not."""
    taken = 0
    take = Lines.take

    def counted(lines: Lines) -> bytes:
        nonlocal taken
        taken += 1
        return take(lines)

    monkeypatch.setattr(Lines, "take", counted)
    lines = 2_000
    rows = read(path, b"email,name\n" + b'x","y\n' * lines + b'"z\n')
    assert len(rows) == lines + 1
    assert taken < lines * (MAX_ROW_LINES + 5)


def test_a_note_behind_a_quote_that_is_never_closed_is_one_reject(path: Path) -> None:
    rows = read(path, b'email,name\na@x,"A\n' + b"u@x,U\n" * 150 + note(b"\n") + b"z@x,Z\n")
    assert [row.fault for row in rows if row.fault] == [
        "has a quoted field that is never closed",
        "has more than 100 lines",
    ]
    assert [row.line for row in rows] == [*range(2, 154), 153 + MAX_ROW_LINES + 20]


@given(
    lines=st.lists(st.text('a,"\r', max_size=8), min_size=1, max_size=8).map(
        lambda lines: [line.encode() + b"\n" for line in lines]
    )
)
def test_a_row_ends_where_the_csv_reader_says(lines: list[bytes]) -> None:
    taken = lines[:1]
    behind = Lines(BytesIO(b"".join(lines)), "a.csv", MAX_UNPACKED)
    behind.take()
    try:
        reader = csv.reader((line.decode() for line in lines), strict=True)
        next(reader)
        end = reader.line_num
    except csv.Error:
        end = 0
    assert Closing(behind).found(taken) == (end > 0)
    assert taken == lines[: max(1, end)]
    assert behind.offset == len(b"".join(taken))


def test_a_row_of_many_lines_is_one_reject(path: Path) -> None:
    rows = read(path, b'email,name\na@x,"A\nda",more\nlast@x,Last\n')
    assert told(rows) == [(2, "has 3 fields where 2 are expected"), (4, ("last@x", "Last"))]
    assert rows[0].raw == b'a@x,"A\nda",more\n'


def test_a_file_of_the_header_alone_has_no_rows(path: Path) -> None:
    assert read(path, b"email,name") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"name,email\na,b\n",
        b"email\n",
        b"email,name,age\n",
        "email,name\n".encode("utf-16"),
        b"email;name\n",
        b"\0",
    ],
)
def test_a_wrong_header_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(Permanent, match=r"'users\.csv' doesn't begin with the header email,name in UTF-8"):
        read_rows(path, HEADER, None, 10, max_unpacked=MAX_UNPACKED)


def test_rows_that_belong_together_are_never_parted(path: Path) -> None:
    path.write_bytes(b"email,name\na,1\na,2\na,3\nb,1\nb,bad,row\nb,2\nc,1\n")
    found = [[row.fields[:1] or row.fault for row in chunk] for chunk in chunks(path, 1, together=0)]
    assert found == [[("a",)] * 3, [("b",), "has 3 fields where 2 are expected", ("b",)], [("c",)]]


@pytest.mark.parametrize("second", [b"a,", b"bad"])  # a bad row may belong to any other
def test_a_chunk_has_an_end_however_much_belongs_together(
    path: Path, second: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_CHUNK_BYTES", 16)
    path.write_bytes(b"email,name\na,1\n" + (second + b"x" * 20 + b"\n") * 4 + b"b,1\n")
    assert [len(chunk) for chunk in chunks(path, 100, together=0)] == [3, 2, 1]


def test_the_cursor_tells_whether_it_parts_what_belongs_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_TOGETHER", 1)
    path.write_bytes(b"email,name\na,1\na,2\na,3\nb,1\n")
    position, parted = None, list[bool]()
    while (position := read_rows(path, HEADER, position, 1, together=0, max_unpacked=MAX_UNPACKED).next) is not None:
        parted.append(position.parted)
    assert parted == [True, False]


@pytest.mark.parametrize("together", [None, 0])
def test_rows_behind_more_empty_lines_than_a_chunk_may_hold_are_read(
    path: Path, together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_CHUNK_BYTES", 10)
    rows = read(path, b"email,name\n" + b"\n" * 20 + b"a@x,A\nb@x,B\n", together=together)
    assert told(rows) == [(22, ("a@x", "A")), (23, ("b@x", "B"))]


@pytest.mark.parametrize("together", [None, 0])
@pytest.mark.parametrize("empty", [b"\n", b"\r\n"])
def test_a_chunk_has_an_end_however_many_lines_are_empty(
    path: Path, empty: bytes, together: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_CHUNK_BYTES", 1_000)
    path.write_bytes(b"email,name\na@x,A\n" + empty * 10_000 + b"a@x,B\n")
    position, before, found = None, 0, list[int]()
    while (rows := read_rows(path, HEADER, position, 1_000, together=together, max_unpacked=MAX_UNPACKED)).next:
        position = rows.next
        found.append(position.offset - before)
        before = position.offset
    assert max(found) < 1_000 + LINES_AHEAD * len(empty)


def test_a_header_behind_more_empty_lines_than_anybody_looks_through_is_none(path: Path) -> None:
    path.write_bytes(b"\n" * MAX_LINE_BYTES + b"email,name\na@x,A\n")
    with pytest.raises(Permanent, match="doesn't begin with the header"):
        read_rows(path, HEADER, None, 10, max_unpacked=MAX_UNPACKED)


def totals(path: Path, position: Position | None) -> list[int]:
    """What each chunk of 100 rows says that the file has, from `position` on."""
    found: list[int] = []
    while position or not found:
        rows = read_rows(path, HEADER, position, 100, max_unpacked=MAX_UNPACKED)
        found.append(rows.in_all)
        position = rows.next
    return found


def test_rows_are_counted_not_their_lines(path: Path) -> None:
    count = 2_000
    path.write_bytes(b"email,name\n" + b'user@x,"A\nB\nC"\n\n' * count)
    found = totals(path, None)
    assert found[-1] == count
    assert found[10] == pytest.approx(count, rel=0.2)


def test_a_cursor_that_counts_no_rows_goes_on(path: Path) -> None:
    path.write_bytes(b"email,name\n" + b"user@x,U\n" * 300)
    position = read_rows(path, HEADER, None, 10, max_unpacked=MAX_UNPACKED).next
    assert position is not None
    earlier = Position.model_validate_json(position.model_dump_json(exclude={"rows", "parted"}))
    assert totals(path, earlier)[-1] == 300


def test_a_changed_file_is_refused(path: Path) -> None:
    path.write_bytes(b"email,name\na@x,A\nb@x,B\n")
    position = read_rows(path, HEADER, None, 1, max_unpacked=MAX_UNPACKED).next
    path.write_bytes(b"email,name\na@x,A\nc@x,C\n")
    os.utime(path, ns=(0, 0))  # whatever the clock's grain
    with pytest.raises(Permanent, match=r"'users\.csv' changed while it was imported, at line 3; put it back"):
        read_rows(path, HEADER, position, 1, max_unpacked=MAX_UNPACKED)


def test_so_is_one_that_was_replaced_by_one_of_the_same_size_and_time(path: Path) -> None:
    path.write_bytes(b"email,name\na@x,A\nb@x,B\n")
    os.utime(path, ns=(0, 0))
    before = path.stat()
    position = read_rows(path, HEADER, None, 1, max_unpacked=MAX_UNPACKED).next
    other = path.with_name("other.csv")
    other.write_bytes(b"email,name\na@x,A\nc@x,C\n")
    other.replace(path)
    os.utime(path, ns=(0, 0))  # as an archive may set it
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock's grain
        os.utime(path, ns=(0, 0))
    with pytest.raises(Permanent, match=r"'users\.csv' changed while it was imported, at line 3"):
        read_rows(path, HEADER, position, 1, max_unpacked=MAX_UNPACKED)


def test_a_cursor_of_before_the_second_time_goes_on(path: Path) -> None:
    path.write_bytes(b"email,name\na@x,A\nb@x,B\nc@x,C\n")
    position = read_rows(path, HEADER, None, 1, max_unpacked=MAX_UNPACKED).next
    assert position is not None
    earlier = Position.model_validate_json(position.model_dump_json(exclude={"ctime_ns"}))
    rows = read_rows(path, HEADER, earlier, 1, max_unpacked=MAX_UNPACKED)
    assert told(rows.rows) == [(3, ("b@x", "B"))]
    assert rows.next is not None
    assert rows.next.ctime_ns == position.ctime_ns


def test_a_file_that_was_only_touched_is_read_on(path: Path) -> None:
    path.write_bytes(b"email,name\na@x,A\nb@x,B\nc@x,C\n")
    position = read_rows(path, HEADER, None, 1, max_unpacked=MAX_UNPACKED).next
    os.utime(path, ns=(0, 0))
    rows = read_rows(path, HEADER, position, 1, max_unpacked=MAX_UNPACKED)
    assert told(rows.rows) == [(3, ("b@x", "B"))]
    assert rows.next is not None
    assert rows.next.mtime_ns == 0  # so that it is hashed once, not at each chunk


@given(
    content=st.lists(
        st.sampled_from([b"a@x,A", b'b@x,"', b'"', b"\n", b"\r\n", b",", b"\xff", b"x", b'""']), max_size=30
    )
)
def test_whatever_stands_in_it_each_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.csv"
    body = b"".join(content)
    one = read(path, b"email,name\n" + body, 1)
    assert one == read(path, b"email,name\n" + body, 7)
    assert b"".join(row.raw for row in one).replace(b"\r", b"").replace(b"\n", b"") == body.replace(b"\r", b"").replace(
        b"\n", b""
    )


GOOD = st.text("aé ☃", max_size=5).map(lambda name: f"u@x,{name}".encode())
BAD = st.sampled_from(
    [b"nobody", b"a@x,A,more", b"a@x,\xff", b"a@x,A\0", b'a@x,"A" b', b"a\rb@x,B", b",", b'"', b'x"y,z']
)


@given(lines=st.lists(st.one_of(GOOD, BAD, st.just(b"")), max_size=40), end=st.sampled_from([b"\n", b"\r\n"]))
def test_bad_lines_lose_no_good_one(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes) -> None:
    """The oracle: a line without a quote is its fields between commas. None begins with one, so each stands alone."""
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    lines = [line for line in lines if not line.startswith(b'"')]
    found = {row.line: row.fields for row in read(path, b"email,name" + end + end.join(lines), 3) if not row.fault}
    for number, line in enumerate(lines, start=2):
        if is_good(line):
            assert found[number] == tuple(field.strip() for field in line.decode().split(","))
        elif b'"' not in line:
            assert number not in found


def is_good(line: bytes) -> bool:
    return line.count(b",") == 1 and not any(sign in line for sign in (b'"', b"\xff", b"\0", b"\r"))


@given(content=st.binary(max_size=400), size=st.integers(1, 5))
def test_bytes_of_any_kind_are_read_to_the_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    found = read(path, b"email,name\n" + content + b"\nlast@x,Last\n", size)
    # The last line is good, unless a quoted field that the bytes begin goes on until there.
    assert found[-1].fields == ("last@x", "Last") or b'"' in content
