"""worker pause and resume: what they say, their exit codes, and what status shows."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.cli.conftest import Command

Query = Callable[..., Sequence[Any]]


def test_pause_and_resume_say_what_they_did_and_status_shows_it(command: Command, query: Query) -> None:
    paused = command("pause", "--queue", "mail", "--name", "tests.greet", "--name", "tests.ping")
    assert paused.stdout == "".join(
        f"The {what} is paused.\n" for what in ("queue mail", "name tests.greet", "name tests.ping")
    )
    assert command("pause", "--queue", "mail").stdout == "The queue mail is paused.\n"
    rows = query("select kind, name from worker.pause order by kind, name")
    assert [tuple(row) for row in rows] == [("name", "tests.greet"), ("name", "tests.ping"), ("queue", "mail")]
    status = json.loads(command("status", "--json").stdout)
    assert (status["paused_queues"], status["paused_names"]) == (["mail"], ["tests.greet", "tests.ping"])
    shown = command("status").stdout
    assert "Paused: the queue mail. worker resume --queue mail lets it go on.\n" in shown
    assert command("resume", "--name", "tests.ping", "--queue", "mail").stdout == (
        "The queue mail goes on.\nThe name tests.ping goes on.\n"
    )
    refused = command("resume", "--queue", "mail", "--name", "tests.greet", exit_code=1)
    assert refused.stdout == "The name tests.greet goes on.\n"
    assert refused.stderr == "Error: Not paused: the queue 'mail'; worker status lists what is.\n"
    assert query("select * from worker.pause") == []


def test_what_nobody_could_mean_is_refused(command: Command, query: Query) -> None:
    for name in ("pause", "resume"):
        assert "Nothing is named; give --queue Q or --name N." in command(name, exit_code=2).stderr
    refused = command("pause", "--queue", "mail", "--name", "tests.gret", exit_code=2)
    assert refused.stderr == (
        "Error: WORKER_APP has no handler of the name 'tests.gret'; worker schema lists those it has.\n"
    )
    assert "The queue is called 'a b'" in command("pause", "--queue", "a b", exit_code=2).output
    assert query("select * from worker.pause") == []
