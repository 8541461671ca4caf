"""The Dockerfile: linted, its rules for the last stage checked, and its wheel built. No Docker engine is needed."""

import re
import shutil
from pathlib import Path
from zipfile import ZipFile

from tests.deploy.files import (
    DOCKERFILE,
    ROOT,
    Instruction,
    read_environment,
    read_image_health,
    read_stages,
    run_tool,
    texts,
)
from worker.settings import Settings

BUILD_TOOLS = r"\b(gcc|g\+\+|make|cmake|build-essential|hatchling|uv|apt-get install|pip install)\b|-dev\b"


def last_stage() -> list[Instruction]:
    return read_stages()[-1]


def test_hadolint_finds_nothing() -> None:
    run_tool("hadolint", "--failure-threshold", "style", str(DOCKERFILE))


def test_every_stage_stands_on_the_slim_image() -> None:
    assert [texts(stage, "FROM")[0].split()[0] for stage in read_stages()] == ["python:3.11-slim"] * 2


def test_packages_come_from_the_lock_files_alone() -> None:
    [installs] = [text for stage in read_stages() for text in texts(stage, "RUN") if "requirements" in text]
    assert re.findall(r"pip install .*?--requirement (\S+)", installs) == [
        "requirements/build.txt",
        "requirements/runtime.txt",
    ]
    assert installs.count("--require-hashes") == 2
    assert "dev.txt" not in DOCKERFILE.read_text()


def test_the_last_stage_has_no_build_tools() -> None:
    assert [text for text in texts(last_stage(), "RUN") if re.search(BUILD_TOOLS, text)] == []
    assert any("pip uninstall --yes" in text for text in texts(last_stage(), "RUN"))
    assert texts(last_stage(), "COPY") == ["--from=build /opt/worker /opt/worker"]
    assert texts(last_stage(), "ADD") == []


def test_the_last_stage_runs_as_a_numeric_user_who_is_not_root() -> None:
    *_, user = texts(last_stage(), "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [instruction.name for instruction in last_stage()]
    assert "RUN" not in names[names.index("USER") :]


def test_files_lie_on_a_volume() -> None:
    assert read_environment(last_stage())["WORKER_FILES_DIR"] == "/files"
    assert texts(last_stage(), "VOLUME") == ['["/files"]']


def test_the_worker_is_started_stopped_and_watched() -> None:
    assert texts(last_stage(), "CMD") == ['["worker", "run"]']
    assert texts(last_stage(), "STOPSIGNAL") == ["SIGTERM"]
    assert read_image_health(last_stage())[1] == ["worker", "status", "--check"]


def test_the_comment_on_stopping_names_the_real_grace() -> None:
    assert f"WORKER_SHUTDOWN_GRACE ({Settings.model_fields['shutdown_grace'].default} s)" in DOCKERFILE.read_text()


def test_the_wheel_is_built_from_what_is_copied_and_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for copied, target in (text.split() for text in texts(read_stages()[0], "COPY") if "requirements" not in text):
        if target == "./":
            shutil.copy(ROOT / copied, source)
        else:
            shutil.copytree(ROOT / copied, source / target, ignore=shutil.ignore_patterns("__pycache__"))
    run_tool("hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "dist"), cwd=source)

    [wheel] = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {
        str(path.relative_to(source))
        for name in ("jobs", "worker")
        for path in (source / name).rglob("*")
        if path.is_file()
    }
