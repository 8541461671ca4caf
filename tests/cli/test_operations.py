"""worker replay, cancel and discard: what they say, and their exit codes. What they do: tests/test_operations.py."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cli.conftest import Command

Query = Callable[..., Sequence[Any]]
Work = Callable[[], object]


def test_replay_tells_of_each_id_and_fails_where_one_is_refused(command: Command, work: Work) -> None:
    first, second = (command("enqueue", "tests.fail").stdout.strip() for _ in range(2))
    work()
    result = command("replay", first, "nobody", second, first, exit_code=1)
    assert result.stdout == "".join(f"{job_id} (tests.fail) waits to run again.\n" for job_id in (first, second))
    assert result.stderr == "Error: No job has the id 'nobody'; worker runs lists those that there are.\n"


def test_replay_all_counts(command: Command, work: Work) -> None:
    assert command("replay", "--all").stdout == "No job is dead.\n"
    for _ in range(3):
        command("enqueue", "tests.fail")
    work()
    assert command("replay", "--all").stdout == "Jobs that wait to run again: 3.\n"


@pytest.mark.parametrize("option", ["--name", "--error"])
def test_replay_of_an_empty_name_or_error_is_not_replay_of_all(command: Command, work: Work, option: str) -> None:
    """As from a script whose variable isn't set."""
    command("enqueue", "tests.fail")
    work()
    assert "say --all for that" in command("replay", option, "", exit_code=2).stderr
    assert command("replay", "--all").stdout == "Jobs that wait to run again: 1.\n"


def test_replay_takes_what_bears_a_name_or_an_error_and_lists_it_as_json(command: Command, work: Work) -> None:
    ids = {reason: _failed(command, reason) for reason in ("no such sku", "no such user", "100% gone")}
    work()
    assert command("replay", "--name", "tests.greet").stdout == "No such job is dead.\n"
    assert command("replay", "--error", "No such").stdout == "No such job is dead.\n"
    told = command("replay", "--name", "tests.fail", "--error", "no such", "--json").stdout
    assert [json.loads(line) for line in told.splitlines()] == [
        {"job_id": ids[reason], "name": "tests.fail"} for reason in ("no such sku", "no such user")
    ]
    listed = command("runs", "--status", "dead", "--error", "100%", "--json").stdout
    assert json.loads(listed)["id"] == ids["100% gone"]
    assert command("replay", ids["100% gone"], "--json").stdout.startswith('{"job_id"')


def test_replay_at_a_rate_gives_each_job_its_own_time(command: Command, work: Work, query: Query) -> None:
    for reason in "abcd":
        _failed(command, reason)
    work()
    assert command("replay", "--all", "--rate", "120/m").stdout == "Jobs that wait to run again: 4.\n"
    gaps = "select extract(epoch from at - min(at) over ())::float8 as gap from (select {} as at from worker.{}) as a"
    for column, table in (("due_at", "outbox"), ("next_at", "run")):
        assert sorted(row["gap"] for row in query(gaps.format(column, table))) == [0, 0.5, 1, 1.5]
    for rate in ("0/s", "10", "1e3/s", "10/d"):
        refused = command("replay", "--all", "--rate", rate, exit_code=2)
        assert refused.stderr == f"Error: --rate is {rate!r}; write it as 10/s, 600/m or 5000/h.\n"


def test_replay_asks_somebody_who_sits_there(
    command: Command, work: Work, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.operations.is_interactive", lambda: True)
    _failed(command, "a")
    work()
    assert "Let 1 dead jobs run again? [y/N]" in command("replay", "--all", exit_code=1).stderr
    assert [row["status"] for row in query("select status from worker.run")] == ["dead"]
    assert command("replay", "--all", "--yes").stdout == "Jobs that wait to run again: 1.\n"


def test_replay_needs_ids_or_what_they_have_in_common(command: Command) -> None:
    for args in ((), ("--all", "one"), ("--name", "tests.fail", "one"), ("--all", "--error", "no")):
        refused = command("replay", *args, exit_code=2)
        assert refused.stderr.endswith("takes ids of dead jobs, or --name and --error, or --all; give one of them.\n")
    assert "--rate goes with" in command("replay", "one", "--rate", "1/s", exit_code=2).stderr


def _failed(command: Command, reason: str) -> str:
    return command("enqueue", "tests.fail", "--json", json.dumps({"reason": reason})).stdout.strip()


def test_discard_and_cancel_say_what_they_did(command: Command, work: Work) -> None:
    failed = command("enqueue", "tests.fail").stdout.strip()
    work()
    assert command("discard", failed).stdout == f"{failed} (tests.fail) is discarded.\n"
    assert f"The job {failed} is discarded; only a dead one" in command("discard", failed, exit_code=1).stderr
    waiting = command("enqueue", "tests.later").stdout.strip()
    assert command("cancel", waiting).stdout == f"{waiting} (tests.later) is cancelled.\n"
    refused = command("cancel", waiting, exit_code=1)
    assert refused.stderr == (
        f"Error: The job {waiting} is cancelled already; only one that isn't final can be cancelled.\n"
    )


def test_discard_takes_ids_and_what_dead_jobs_have_in_common(command: Command, work: Work) -> None:
    ids = {reason: _failed(command, reason) for reason in ("no such sku", "no such user", "gone", "late", "odd")}
    work()
    told = command("discard", ids["odd"], "nobody", ids["late"], exit_code=1)
    assert told.stdout == "".join(f"{ids[reason]} (tests.fail) is discarded.\n" for reason in ("odd", "late"))
    assert told.stderr == "Error: No job has the id 'nobody'; worker runs lists those that there are.\n"
    assert command("discard", "--name", "tests.greet").stdout == "No such job is dead.\n"
    told = command("discard", "--name", "tests.fail", "--error", "no such", "--json")
    assert [json.loads(line) for line in told.stdout.splitlines()] == [
        {"job_id": ids[reason], "name": "tests.fail"} for reason in ("no such sku", "no such user")
    ]
    assert command("discard", "--all").stdout == "Discarded jobs: 1.\n"
    assert command("discard", "--all").stdout == "No job is dead.\n"


def test_discard_of_many_asks_somebody_who_sits_there(
    command: Command, work: Work, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.operations.is_interactive", lambda: True)
    _failed(command, "a")
    work()
    assert "Discard 1 dead jobs for good? [y/N]" in command("discard", "--all", exit_code=1).stderr
    assert [row["status"] for row in query("select status from worker.run")] == ["dead"]
    assert command("discard", "--all", "--yes").stdout == "Discarded jobs: 1.\n"


def test_discard_needs_ids_or_what_they_have_in_common(command: Command) -> None:
    for args in ((), ("--all", "one"), ("--name", "tests.fail", "one"), ("--all", "--error", "no")):
        refused = command("discard", *args, exit_code=2)
        assert refused.stderr.endswith("takes ids of dead jobs, or --name and --error, or --all; give one of them.\n")
    assert "say --all for that" in command("discard", "--error", "", exit_code=2).stderr
