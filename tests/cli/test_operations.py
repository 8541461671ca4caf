"""worker replay, cancel and discard: what they say, and their exit codes. What they do: tests/test_operations.py."""

from collections.abc import Callable

from tests.cli.conftest import Command

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


def test_replay_needs_ids_or_all(command: Command) -> None:
    for args in ((), ("--all", "one")):
        refused = command("replay", *args, exit_code=2)
        assert refused.stderr == "Error: worker replay takes ids of dead jobs, or --all; give one of them.\n"


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
