"""worker pause and resume: what they say, their exit codes, and what status shows."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.cli.conftest import Command

Query = Callable[..., Sequence[Any]]


def test_pause_and_resume_say_what_they_did_and_status_shows_it(command: Command, query: Query) -> None:
    paused = command("pause", "--queue", "slow", "--name", "tests.greet", "--name", "tests.ping")
    assert paused.stdout == "".join(
        f"The {what} is paused.\n" for what in ("queue slow", "name tests.greet", "name tests.ping")
    )
    assert command("pause", "--queue", "slow").stdout == "The queue slow is paused.\n"
    rows = query("select kind, name from worker.pause order by kind, name")
    assert [tuple(row) for row in rows] == [("name", "tests.greet"), ("name", "tests.ping"), ("queue", "slow")]
    status = json.loads(command("status", "--json").stdout)
    assert (status["paused_queues"], status["paused_names"]) == (["slow"], ["tests.greet", "tests.ping"])
    shown = command("status").stdout
    assert "Paused: the queue slow. worker resume --queue slow lets it go on.\n" in shown
    assert command("resume", "--name", "tests.ping", "--queue", "slow").stdout == (
        "The queue slow goes on.\nThe name tests.ping goes on.\n"
    )
    refused = command("resume", "--queue", "slow", "--name", "tests.greet", exit_code=1)
    assert refused.stdout == "The name tests.greet goes on.\n"
    assert refused.stderr == "Error: Not paused: the queue 'slow'; worker status lists what is.\n"
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


def test_a_queue_that_the_app_doesnt_know_is_paused_with_a_word_about_it(command: Command, query: Query) -> None:
    """It may be the caller's own, given to `enqueue`; or a slip, which would pause nothing."""
    told = command("pause", "--queue", "solw").stdout
    assert told == (
        "The queue solw is paused. No job of WORKER_APP goes there by itself, and WORKER_QUEUES doesn't have it: "
        "check its name.\n"
    )
    assert [tuple(row) for row in query("select kind, name from worker.pause")] == [("queue", "solw")]
