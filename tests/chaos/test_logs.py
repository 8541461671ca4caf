"""What is read from the workers' logs."""

import json
from pathlib import Path

from tests.chaos.logs import leaks, read


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def test_attempts_beyond_the_first_are_counted_over_all_workers(tmp_path: Path) -> None:
    write(tmp_path / "worker-1.log", {"event": "began", "ids": ["a", "b"]}, {"event": "began", "ids": ["a"]})
    write(tmp_path / "worker-2.log", {"event": "began", "ids": ["b", "c"]}, {"event": "duplicate"}, '{"event": "be')
    told = read(tmp_path)
    assert told.redelivered == 2
    assert told.events["duplicate"] == 1
    assert told.faults == told.deaths == []


def test_what_nobody_expected_is_told(tmp_path: Path) -> None:
    write(
        tmp_path / "worker-1.log",
        {"event": "fault", "level": "error", "error": "TypeError", "exception": "TypeError"},
        {"event": "fault", "level": "error", "exception": "asyncpg.exceptions.DiskFullError"},
        {"event": "dead", "level": "error"},
        "Traceback (most recent call last):",
        {"event": "process_died", "level": "warning", "signal": "SIGKILL"},
        {"event": "process_died", "level": "warning", "code": 1},
    )
    told = read(tmp_path)
    assert len(told.faults) == 2
    assert len(told.deaths) == 1


def test_a_secret_is_found_and_not_repeated(tmp_path: Path) -> None:
    write(tmp_path / "worker-1.log", "all is well", "the password is hunter2")
    assert leaks(tmp_path, ["hunter2", "token"]) == ["worker-1.log:2"]
