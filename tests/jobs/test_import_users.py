import csv
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.app import handlers
from jobs.csv_input import Position
from jobs.files import Files
from jobs.users.contracts import ImportUsers
from jobs.users.imports import import_users
from tests.jobs.shop import Shop, a_user, names, rows
from worker.app import App
from worker.chunk import Chunk, Memory, Step
from worker.handler import ChunkedHandler
from worker.job import Job
from worker.outcome import Dead
from worker.testing import perform

USERS = "select email, name from users order by lower(email)"


def put(folder: Path, content: str | bytes, name: str = "users.csv") -> ImportUsers:
    """The import of a file with this content."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return ImportUsers(path=name)


def with_chunks_of(size: int, job: type[Job], folder: Path) -> App:
    """The app whose handler of `job` takes this many rows a chunk."""
    found = App(handlers=handlers(Files(folder))).handlers[job.job_name]
    assert isinstance(found, ChunkedHandler)
    return App(handlers=[ChunkedHandler(job, found.run, cursor=Position, size=size)])


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_the_last_row_of_an_address_wins_and_every_row_is_counted(
    tmp_path: Path, session: AsyncSession, size: int
) -> None:
    app = with_chunks_of(size, ImportUsers, tmp_path)
    await a_user(session, "OLD@example.com", is_active=False)
    content = "email,name\na@x,First\nold@example.com,New\nb@x,B\nA@X,Second\nnobody\n"
    result = await perform(app, put(tmp_path, content), session)
    assert {name: result[name] for name in ("read", "inserted", "updated", "rejected")} == {
        "read": 5,
        "inserted": 2,
        "updated": 2,
        "rejected": 1,
    }
    assert await rows(session, USERS) == [("A@X", "Second"), ("b@x", "B"), ("old@example.com", "New")]
    assert await rows(session, "select is_active from users where name = 'New'") == [(False,)]


async def test_a_chunk_of_nothing_but_empty_lines_is_gone_past(
    app: App, tmp_path: Path, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.csv_input.MAX_CHUNK_BYTES", 1_000)
    result = await perform(app, put(tmp_path, "email,name\na@x,A\n" + "\n" * 5_000 + "b@x,B\n"), session)
    assert (result["read"], result["inserted"]) == (2, 2)


async def test_again_everything_is_updated(app: App, tmp_path: Path, session: AsyncSession) -> None:
    job = put(tmp_path, b"\xef\xbb\xbfemail,name\r\na@x,\xc3\x89va\r\n\r\nb@x,\r\n")
    assert (await perform(app, job, session))["inserted"] == 2
    again = await perform(app, job, session)
    assert again == {"read": 2, "inserted": 0, "updated": 2, "rejected": 0, "rejects_path": None}
    assert await rows(session, USERS) == [("a@x", "Éva"), ("b@x", "")]
    assert names(tmp_path) == ["users.csv"]  # no rejects, no file of them


async def test_bad_rows_become_rejects_with_line_and_reason(app: App, tmp_path: Path, session: AsyncSession) -> None:
    long = "x" * 320
    job = put(tmp_path, f'email,name\na@x,A\n,Nobody\nno-address,X\n{long}@x,X\n"b\n@x",B\nc@x,{long}\nd@x\nz@x,Z\n')
    result = await perform(app, job, session)
    assert (result["read"], result["inserted"], result["rejected"]) == (8, 2, 6)
    with (tmp_path / result["rejects_path"]).open(newline="") as file:
        rejects = list(csv.reader(file))
    assert [(line, reason) for line, reason, _ in rejects] == [
        ("line", "reason"),
        ("3", "has no e-mail address"),
        ("4", "has an e-mail address that is none"),
        ("5", "has an e-mail address that is none"),
        ("6", "has an e-mail address that is none"),
        ("8", "is too long in its name: 320 characters where 200 are allowed"),
        ("9", "has 1 fields where 2 are expected"),
    ]
    assert [row for _, _, row in rejects][1:3] == [",Nobody", "no-address,X"]
    assert await rows(session, USERS) == [("a@x", "A"), ("z@x", "Z")]


async def test_rejects_of_all_chunks_are_written_once_beside_the_input(tmp_path: Path, session: AsyncSession) -> None:
    app = with_chunks_of(1, ImportUsers, tmp_path)
    (tmp_path / "in").mkdir()
    result = await perform(app, put(tmp_path, "email,name\nbad\na@x,A\nworse\n", "in/users.csv"), session)
    assert result["rejects_path"].startswith("in/users.rejects-")
    written = (tmp_path / result["rejects_path"]).read_text().splitlines()
    assert [line.split(",")[0] for line in written] == ["line", "2", "4"]


async def test_each_run_has_its_own_file_of_rejects(app: App, tmp_path: Path, session: AsyncSession) -> None:
    job = put(tmp_path, "email,name\nbad\n")
    first = await perform(app, job, session)
    assert (await perform(app, job, session))["rejects_path"] != first["rejects_path"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing.csv", "Permanent: There is no file 'missing.csv'"),
        ("../users.csv", "Permanent: The path '../users.csv' leads out"),
        ("/etc/passwd", "Permanent: The path '/etc/passwd' leads out"),
        ("link.csv", "Permanent: The path 'link.csv' leads out"),
        ("wrong.csv", "Permanent: The file 'wrong.csv' doesn't begin with the header email,name"),
        ("", "InvalidPayload: The payload does not fit users.import: path: "),
    ],
)
async def test_a_file_that_cannot_be_imported_is_dead_at_once(
    shop: Shop, tmp_path: Path, path: str, error: str
) -> None:
    (tmp_path / "link.csv").symlink_to("/etc/passwd")
    put(tmp_path, "name,email\nAda,a@x\n", "wrong.csv")
    outcome = await shop.outcome(ImportUsers.model_construct(path=path))
    assert isinstance(outcome, Dead)
    assert outcome.error.startswith(error)
    assert await shop.rows("select count(*) from users") == [(0,)]


async def test_a_file_that_changes_under_the_import_is_dead_and_keeps_its_chunks(shop: Shop, tmp_path: Path) -> None:
    found = shop.app.handlers["users.import"]
    assert isinstance(found, ChunkedHandler)

    async def change_after_the_first(job: ImportUsers, session: AsyncSession, chunk: Chunk[Position]) -> Step[Position]:
        if chunk.cursor and chunk.cursor.line == 3:
            put(tmp_path, "email,name\na@x,A\nb@x,B\nd@x,longer\n")
        step: Step[Position] = await found.run(job, session, chunk)
        return step

    app = App(handlers=[ChunkedHandler(ImportUsers, change_after_the_first, cursor=Position, size=1)])
    outcome = await replace(shop, app=app).outcome(put(tmp_path, "email,name\na@x,A\nb@x,B\nc@x,C\n"))
    assert isinstance(outcome, Dead)
    assert "'users.csv' changed while it was imported, at line " in outcome.error
    # The second chunk may have been read ahead, before the change.
    assert await shop.rows(USERS) in [[("a@x", "A")], [("a@x", "A"), ("b@x", "B")]]


async def test_a_step_tells_the_pace_how_its_rows_were_read(tmp_path: Path, session: AsyncSession) -> None:
    job = put(tmp_path, "email,name\na@x,A\nb@x,B\nc@x,C\nd@x,D\ne@x,E\n")
    memory = Memory()
    first = await import_users(job, session, Chunk(None, 1, memory=memory), files=Files(tmp_path))
    second = await import_users(job, session, Chunk(first.cursor, 2, memory=memory), files=Files(tmp_path))
    third = await import_users(job, session, Chunk(second.cursor, 2, memory=memory), files=Files(tmp_path))
    memory.forget()
    assert [(step.asked, step.done) for step in (first, second, third)] == [(1, 1), (1, 1), (2, 2)]
    assert first.apart > second.apart == third.apart == timedelta(0)
