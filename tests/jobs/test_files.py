import asyncio
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.files import Files
from worker.errors import Permanent
from worker.whole import in_threads, written_whole


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A root beside which a secret lies."""
    (tmp_path / "secret.csv").write_text("secret")
    root = tmp_path / "files"
    root.mkdir()
    (root / "users.csv").write_text("email,name\n")
    return Files(root)


def test_a_path_is_relative_to_the_root_or_absolute_inside_it(files: Files) -> None:
    inside = files.root / "users.csv"
    assert files.existing("users.csv") == files.existing("./a/../users.csv") == files.existing(str(inside)) == inside
    assert files.relative(inside) == "users.csv"


@pytest.mark.parametrize("path", ["../secret.csv", "a/../../secret.csv", "..", "/etc/passwd"])
def test_a_path_that_leads_out_is_refused(files: Files, path: str) -> None:
    with pytest.raises(Permanent, match="leads out of WORKER_FILES_DIR"):
        files.existing(path)
    with pytest.raises(Permanent, match="leads out of WORKER_FILES_DIR"):
        files.target(path)


def test_a_sibling_whose_name_begins_like_the_root_is_outside(files: Files) -> None:
    with pytest.raises(Permanent, match="leads out"):
        files.resolve("../files-of-others/users.csv")


def test_a_link_that_leads_out_is_refused(files: Files) -> None:
    (files.root / "link.csv").symlink_to(files.root.parent / "secret.csv")
    (files.root / "folder").symlink_to(files.root.parent)
    for path in ("link.csv", "folder/secret.csv", "folder/new.csv"):
        with pytest.raises(Permanent, match="leads out"):
            files.resolve(path)


def test_a_link_that_stays_inside_is_followed(files: Files) -> None:
    (files.root / "link.csv").symlink_to("users.csv")
    assert files.existing("link.csv") == files.root / "users.csv"


def test_a_root_that_is_a_link_itself_is_no_way_out(tmp_path: Path, files: Files) -> None:
    (tmp_path / "alias").symlink_to(files.root)
    assert Files(tmp_path / "alias").existing("users.csv") == files.root / "users.csv"


@pytest.mark.parametrize("path", ["nothing.csv", ".", "a\0b", "x" * 5_000, "loop"])
def test_what_is_no_file_is_refused(files: Files, path: str) -> None:
    (files.root / "loop").symlink_to("loop")
    with pytest.raises(Permanent):
        files.existing(path)


def test_a_pipe_is_no_file(files: Files) -> None:
    os.mkfifo(files.root / "pipe")
    with pytest.raises(Permanent, match="There is no file 'pipe'"):
        files.existing("pipe")


def test_a_folder_is_no_target(files: Files) -> None:
    with pytest.raises(Permanent, match="is a folder"):
        files.target(".")


def test_a_file_appears_whole(files: Files) -> None:
    target = files.target("new/folder/out.csv")
    with written_whole(target) as file:
        file.write(b"all")
        assert not target.exists()
    assert target.read_bytes() == b"all"
    assert [path.name for path in target.parent.iterdir()] == ["out.csv"]


def test_a_file_whose_writing_fails_leaves_the_old_one_and_no_draft(files: Files) -> None:
    target = files.target("users.csv")
    with suppress(ZeroDivisionError), written_whole(target) as file:
        file.write(b"half")
        _ = 1 / 0
    assert target.read_text() == "email,name\n"
    assert [path.name for path in files.root.iterdir()] == ["users.csv"]


@pytest.mark.parametrize("place", ["mkdir", "fsync"])
async def test_a_cancellation_while_a_thread_opens_or_ends_a_file_leaves_no_draft(
    files: Files, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled when it opens: no file. When it ends: the whole file, since the rename is under way."""
    reached, go_on = threading.Event(), threading.Event()
    owner, plain = {"mkdir": (Path, Path.mkdir), "fsync": (os, os.fsync)}[place]

    def slowly(*arguments: object, **options: object) -> object:
        reached.set()
        go_on.wait(20)
        return plain(*arguments, **options)  # type: ignore[operator]  # one or the other

    async def write() -> None:
        async with in_threads(files.writing("out/new.csv")) as file:
            file.write(b"all")

    monkeypatch.setattr(owner, place, slowly)
    writing = asyncio.create_task(write())
    await asyncio.to_thread(reached.wait, 20)
    writing.cancel()
    await asyncio.sleep(0)  # the cancellation arrives while the thread is held
    go_on.set()
    await asyncio.wait({writing}, timeout=20)
    assert writing.cancelled()
    assert [path.name for path in (files.root / "out").iterdir()] == ([] if place == "mkdir" else ["new.csv"])
