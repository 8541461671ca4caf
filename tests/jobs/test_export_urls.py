"""Where an export may be written to beside WORKER_FILES_DIR."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from jobs.app import handlers
from jobs.files import Files
from jobs.users.contracts import ExportUsers
from tests.jobs.shop import a_user, names
from worker.app import App
from worker.errors import Permanent
from worker.file_urls import allowed, read_prefixes
from worker.settings import SettingsError, load_settings
from worker.testing import perform

PREFIXES = ("memory://exports/", "s3://bucket/out/")


@pytest.fixture
def folder() -> Iterator[str]:
    """A prefix of one test in fsspec's memory, which is that of the process."""
    folder = f"memory://{uuid4().hex}/"
    yield folder
    memory().store.clear()


@pytest.fixture
def app(tmp_path: Path, folder: str) -> App:
    return App(handlers=handlers(Files(tmp_path, (folder,))))


def memory() -> Any:
    fsspec: Any = importlib.import_module("fsspec")  # it has no types
    return fsspec.filesystem("memory")


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
async def test_what_is_written_to_a_url_is_what_is_written_to_a_path(
    app: App, folder: str, tmp_path: Path, session: AsyncSession, kind: str
) -> None:
    await a_user(session)
    for path in (f"{folder}new/users", "users"):
        result = await perform(app, ExportUsers.model_validate({"path": path, "format": kind}), session)
    written = memory().cat_file(f"{folder}new/users")
    assert written == (tmp_path / "users").read_bytes()
    assert result == {"rows": 1, "bytes": len(written)}
    assert len(memory().find(folder)) == 1  # and no draft


async def test_a_url_whose_writing_fails_keeps_the_old_file_and_no_draft(
    app: App, folder: str, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory().pipe_file(f"{folder}users.parquet", b"old")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Permanent, match="needs pyarrow"):
        await perform(app, ExportUsers(path=f"{folder}users.parquet", format="parquet"), session)
    assert memory().cat_file(f"{folder}users.parquet") == b"old"
    assert len(memory().find(folder)) == 1


async def test_a_folder_is_no_url_of_a_file(app: App, folder: str, session: AsyncSession) -> None:
    memory().pipe_file(f"{folder}users/old.csv", b"old")
    with pytest.raises(Permanent, match="is a folder"):
        await perform(app, ExportUsers(path=f"{folder}users"), session)
    assert len(memory().find(folder)) == 1


async def test_a_file_url_goes_through_the_check_of_paths(app: App, tmp_path: Path, session: AsyncSession) -> None:
    await perform(app, ExportUsers(path=f"file://{tmp_path}/out/users.csv"), session)
    assert names(tmp_path / "out") == ["users.csv"]
    for url, reason in (
        ("file:///etc/users.csv", "leads out of WORKER_FILES_DIR"),
        (f"file://{tmp_path}/../users.csv", "leads out of WORKER_FILES_DIR"),
        (f"file://elsewhere{tmp_path}/users.csv", "without a host"),
        (f"file://{tmp_path}/a::b", "without ::"),
    ):
        with pytest.raises(Permanent, match=reason):
            await perform(app, ExportUsers(path=url), session)
    assert names(tmp_path) == ["out"]


async def test_without_fsspec_a_url_is_a_sentence(
    app: App, folder: str, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(Permanent, match="install fsspec"):
        await perform(app, ExportUsers(path=f"{folder}users.csv"), session)


async def test_a_store_whose_package_is_missing_is_a_sentence(
    tmp_path: Path, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Permanent, match=r"fsspec can't write to s3:// here \(Install s3fs"):
        await perform(
            App(handlers=handlers(Files(tmp_path, PREFIXES))), ExportUsers(path="s3://bucket/out/a.csv"), session
        )


@pytest.mark.parametrize("url", ["memory://exports/a.csv", "s3://bucket/out/2026/a b (1).csv", "s3://bucket/out/..a/é"])
def test_names_below_a_prefix_are_allowed(url: str) -> None:
    assert allowed(url, PREFIXES) == url


@pytest.mark.parametrize(
    "url",
    [
        "memory://other/a.csv",
        "memory://exports-of-others/a.csv",
        "memory://exports/",
        "memory://exports",
        "MEMORY://exports/a.csv",
        "s3://bucket/out/../a.csv",
        "s3://bucket/out/./a.csv",
        "s3://bucket/out//a.csv",
        "s3://bucket/out/%2e%2e/a.csv",
        "s3://bucket/out/..\\a.csv",
        "s3://bucket/out/a.csv?key=secret",
        "s3://bucket/out/a.csv#secret",
        "s3://bucket/out/*.csv",
        "s3://bucket/out/a\0.csv",
        "s3://bucket/out/a\n.csv",
        "s3://ada:secret@bucket/out/a.csv",
        "s3://secret@bucket/out/a.csv",
        "https://ada:secret@example.org/a.csv",
        "simplecache::s3://bucket/out/a.csv",
        "s3://bucket/out/a.zip::secret",
        "zip://a.csv::s3://bucket/out/a.zip",
        "secret::",
        "://secret",
    ],
)
def test_any_other_url_is_dead_and_its_text_isnt_told(tmp_path: Path, url: str) -> None:
    with pytest.raises(Permanent) as caught:
        Files(tmp_path, PREFIXES).writing(url)
    told = str(caught.value)
    assert "secret" not in told
    assert "bucket" not in told
    assert told.endswith(".")
    assert names(tmp_path) == []


def test_no_url_is_allowed_unless_it_is_set(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="isn't below a prefix of WORKER_FILES_URLS"):
        Files(tmp_path).writing("memory://exports/a.csv")


def test_prefixes_are_parted_by_commas_and_end_in_a_slash() -> None:
    assert read_prefixes("memory://exports, s3://bucket/out/,") == PREFIXES
    assert read_prefixes("sftp://host:22/a") == ("sftp://host:22/a/",)
    assert read_prefixes("") == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exports", "as scheme://"),
        ("file:///srv", "WORKER_FILES_DIR"),
        ("s3://", "has to name a bucket"),
        ("s3://ada:secret@bucket/", "without user, password"),
        ("s3://bucket/../", "dots"),
        ("simplecache::s3://bucket/", "as scheme://"),
    ],
)
def test_a_prefix_that_allows_too_much_is_refused_at_start(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_FILES_URLS", text)
    with pytest.raises(SettingsError, match=reason) as caught:
        load_settings(database_url="postgresql:///any")
    assert "WORKER_FILES_URLS" in str(caught.value)
    assert "secret" not in str(caught.value)
