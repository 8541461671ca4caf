"""worker runs and worker show: what waits, ran, failed, and why."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cli.conftest import Command

Query = Callable[..., Sequence[Any]]
Work = Callable[[], object]


def enqueue(command: Command, name: str, payload: str = "{}", *more: str) -> str:
    return command("enqueue", name, "--json", payload, *more).stdout.strip()


def listed(command: Command, *args: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command("runs", "--json", *args).stdout.splitlines()]


def test_runs_lists_what_ran_and_what_waits_newest_first(command: Command, work: Work) -> None:
    greeted = enqueue(command, "tests.greet", '{"name": "Ada"}')
    work()
    failed = enqueue(command, "tests.fail")
    work()
    snoozed = enqueue(command, "tests.later")
    work()
    waiting = enqueue(command, "tests.greet", '{"name": "Bob"}', "--delay", "60")
    found = listed(command)
    assert [(entry["id"], entry["status"]) for entry in found] == [
        (waiting, "waiting"),
        (snoozed, "snoozed"),
        (failed, "dead"),
        (greeted, "completed"),
    ]
    assert [entry["due_at"] is not None for entry in found] == [True, True, False, False]
    assert found[2]["error"] == "Permanent: it can't be done"
    assert [entry["id"] for entry in listed(command, "--status", "dead")] == [failed]
    assert [entry["id"] for entry in listed(command, "--status", "waiting")] == [waiting]
    assert [entry["id"] for entry in listed(command, "--name", "tests.greet")] == [waiting, greeted]
    assert [entry["id"] for entry in listed(command, "--limit", "1")] == [waiting]


def test_runs_lists_one_queue_alone(command: Command) -> None:
    enqueue(command, "tests.greet", '{"name": "Ada"}')
    mailed = enqueue(command, "tests.greet", '{"name": "Bob"}', "--queue", "mail")
    assert [entry["id"] for entry in listed(command, "--queue", "mail")] == [mailed]


def test_what_is_held_back_by_a_pause_says_so_until_it_may_go_on(command: Command, work: Work) -> None:
    done = enqueue(command, "tests.greet", '{"name": "Ada"}')
    work()
    failed = enqueue(command, "tests.later")
    work()
    waiting = enqueue(command, "tests.greet", '{"name": "Bob"}', "--queue", "mail")
    command("pause", "--queue", "mail", "--name", "tests.greet", "--name", "tests.later")
    held = {entry["id"]: entry["paused"] for entry in listed(command)}
    assert held == {done: None, failed: "name tests.later", waiting: "queue mail, name tests.greet"}
    assert "snoozed, paused" in command("runs").stdout
    assert "paused       name tests.later" in command("show", failed).stdout
    command("resume", "--name", "tests.later")
    assert "paused" not in command("show", failed).stdout


@pytest.mark.parametrize("chosen", ["", ", job_id => 'chosen'"], ids=["", "job_id"])
@pytest.mark.parametrize("at", ["20000-01-01", "9999-12-31 23:59-05", "0100-01-01 BC"])
def test_a_due_time_that_python_has_no_date_for_hides_no_job(
    command: Command, query: Query, at: str, chosen: str
) -> None:
    """Whoever may call worker.enqueue may give one."""
    other = enqueue(command, "tests.greet", '{"name": "Ada"}')
    [[job_id]] = query(f"select worker.enqueue('tests.greet', '{{}}', at => '{at}'{chosen})")
    assert {entry["id"] for entry in listed(command)} == {job_id, other}
    assert job_id in command("runs").stdout
    assert json.loads(command("show", job_id, "--json").stdout)["status"] == "waiting"


def test_the_table_shows_ids_whole_and_no_control_characters(command: Command, query: Query) -> None:
    job_id = enqueue(command, "tests.greet", '{"name": "Ada"}')
    query("update worker.outbox set name = 'tests.[red]' || chr(27) || 'odd'")
    told = command("runs").stdout
    assert job_id in told
    assert "tests.[red]\\x1bodd" in told


def test_show_tells_status_result_rows_and_rejects(command: Command, work: Work) -> None:
    job_id = enqueue(command, "tests.count", '{"to": 25}')
    assert json.loads(command("show", job_id, "--json").stdout)["status"] == "waiting"
    work()
    found = json.loads(command("show", job_id, "--json").stdout)
    assert {key: found[key] for key in ("status", "name", "done", "total", "rejects", "result", "failures")} == {
        "status": "completed",
        "name": "tests.count",
        "done": 25,
        "total": 25,
        "rejects": 3,
        "result": {"counted": 25},
        "failures": [],
    }
    told = command("show", job_id).stdout
    assert 'result       {"counted":25}\n' in told


@pytest.mark.parametrize("result", ["0", "false", "0.0375", '"text"'])
def test_show_tells_a_result_as_it_is(command: Command, work: Work, query: Query, result: str) -> None:
    job_id = enqueue(command, "tests.greet", '{"name": "Ada"}')
    work()
    query("update worker.run set result = $1::jsonb", result)
    assert f"result       {result}\n" in command("show", job_id).stdout


def test_show_tells_how_far_a_job_is_and_how_fast_it_goes(command: Command, work: Work, query: Query) -> None:
    job_id = enqueue(command, "tests.count", '{"to": 25, "stop": 10}')
    work()
    query("update worker.run set rate = 7.5, time_left_s = 2, status = 'yielded', finished_at = null, error = null")
    query("delete from worker.attempt")
    found = json.loads(command("show", job_id, "--json").stdout)
    assert {key: found[key] for key in ("done", "total", "rate", "time_left_s")} == {
        "done": 10,
        "total": 25,
        "rate": 7.5,
        "time_left_s": 2.0,
    }
    told = command("show", job_id).stdout
    assert "progress     ████████░░░░░░░░░░░░ 10 of 25 rows (40 %), 8 rows/s, 0:00:02 left\n" in told
    assert "10/25 0:00:02 left" in command("runs").stdout


def test_show_lists_the_partitions_of_a_job_and_adds_up_how_far_they_are(command: Command, query: Query) -> None:
    columns = "id, enqueued_ms, name, queue, status, from_outbox, parent_id, partitions, done, total, rate"
    query(
        f"insert into worker.run ({columns}) values "
        "('whole', 1, 'tests.count', 'arq:queue', 'yielded', true, null, 2, 0, null, null), "
        "('whole:1', 1, 'tests.count', 'arq:queue', 'completed', true, 'whole', null, 20, 20, 4), "
        "('whole:2', 1, 'tests.count', 'arq:queue', 'yielded', true, 'whole', null, 5, 20, 5)"
    )
    query("update worker.run set finished_at = now() where status = 'completed'")
    found = json.loads(command("show", "whole", "--json").stdout)
    assert (found["done"], found["total"], found["rate"], found["time_left_s"]) == (25, 40, 5.0, 3.0)
    assert [(part["id"], part["parent_id"], part["done"]) for part in found["partitions"]] == [
        ("whole:1", "whole", 20),
        ("whole:2", "whole", 5),
    ]
    told = command("show", "whole").stdout
    assert "progress     ████████████░░░░░░░░ 25 of 40 rows (62 %), 5 rows/s, 0:00:03 left\n" in told
    assert "partition    whole:2 yielded   █████░░░░░░░░░░░░░░░ 5 of 20 rows (25 %), 5 rows/s\n" in told


def test_show_tells_every_failure_with_its_traceback(command: Command, work: Work) -> None:
    job_id = enqueue(command, "tests.fail", '{"reason": "one\\u001b[2Jtwo"}')
    work()
    command("replay", job_id)
    work()
    told = command("show", job_id, "--debug").stdout
    assert "error        Permanent: one\\x1b[2Jtwo\n" in told
    assert told.count("Traceback (most recent call last)") == 2
    assert "    worker.errors.Permanent: one\\x1b[2Jtwo\n" in told
    found = json.loads(command("show", job_id, "--json", "--debug").stdout)
    assert [failure["attempt"] for failure in found["failures"]] == [1, 1]


def test_an_error_of_several_lines_stays_readable_in_any_language(command: Command, work: Work) -> None:
    """As PostgreSQL's are, which adds a DETAIL, in the language of its server."""
    job_id = enqueue(command, "tests.fail", '{"reason": "ОШИБКА: «товар» уже есть\\nПОДРОБНОСТИ: c:\\\\a\\u001b"}')
    work()
    told = "Permanent: ОШИБКА: «товар» уже есть\\nПОДРОБНОСТИ: c:\\a\\x1b"
    assert f"error        {told}\n" in command("show", job_id, "--debug").stdout
    assert told in command("runs").stdout


def test_a_payload_is_shown_only_where_it_is_asked_for(command: Command, work: Work, query: Query) -> None:
    waiting = enqueue(command, "tests.greet", '{"name": "hunter2"}', "--delay", "60")
    failed = enqueue(command, "tests.fail", '{"reason": "hunter2"}')
    renamed = "replace(convert_from(message, 'UTF8'), 'reason', 'why')::bytea"
    query(f"update worker.outbox set message = {renamed} where id = $1", failed)
    work()
    for job_id, payload in ((waiting, {"name": "hunter2"}), (failed, {"why": "hunter2"})):
        assert "hunter2" not in command("show", job_id, "--debug").stdout
        refused = command("show", job_id, "--payload", exit_code=2)
        assert refused.stderr == (
            "Error: Payloads may hold personal data; set WORKER_SHOW_PAYLOADS=true to see them.\n"
        )
        shown = command("show", job_id, "--json", "--payload", "--debug", WORKER_SHOW_PAYLOADS="true")
        assert json.loads(shown.stdout)["payload"] == payload
    done = enqueue(command, "tests.greet", '{"name": "Ada"}')
    work()
    refused = command("show", done, "--payload", exit_code=1, WORKER_SHOW_PAYLOADS="true")
    assert f"The payload of {done} isn't kept" in refused.stderr


def test_show_means_an_ids_newest_job(command: Command, work: Work) -> None:
    job_id = enqueue(command, "tests.greet", '{"name": "Ada"}', "--key", "ada")
    work()
    assert enqueue(command, "tests.greet", '{"name": "Bob"}', "--key", "ada") == job_id
    assert json.loads(command("show", job_id, "--json").stdout)["status"] == "waiting"
    work()
    assert json.loads(command("show", job_id, "--json").stdout)["result"] == {"greeting": "hello Bob"}


def test_an_unknown_id_is_a_sentence(command: Command) -> None:
    refused = command("show", "nobody", exit_code=1)
    assert refused.stderr == "Error: No job has the id 'nobody'; worker runs lists those that there are.\n"
