"""worker enqueue: through the outbox or straight to Redis, and what is refused."""

import asyncio
import json
import os
import pty
import select
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from subprocess import PIPE, Popen
from typing import Any, cast

import pytest
from redis import Redis as SyncRedis

from tests.cli.conftest import APP, Command
from tests.conftest import StartWorker
from tests.support.processes import WORKER
from worker.wire import Message, decode

Query = Callable[..., Sequence[Any]]
Work = Callable[[], object]
GREET = ("enqueue", "tests.greet", "--json", '{"name": "Ada"}')


def test_a_job_leaves_through_the_outbox_and_its_id_is_printed(command: Command, query: Query) -> None:
    printed = command(*GREET, "--queue", "mail").stdout
    [row] = query("select id, name, queue, message, due_at <= now() as due from worker.outbox")
    assert printed == f"{row['id']}\n"
    assert (row["name"], row["queue"], row["due"]) == ("tests.greet", "mail", True)
    message = decode(row["message"])
    assert isinstance(message, Message)
    assert (message.payload, message.from_outbox) == (b'{"name":"Ada"}', True)


def test_an_alias_is_enqueued_under_the_jobs_own_name(command: Command, query: Query) -> None:
    command("enqueue", "tests.hello", "--json", '{"name": "Ada"}')
    assert query("select name from worker.outbox")[0]["name"] == "tests.greet"


def test_a_key_coalesces_and_a_job_id_is_the_id(command: Command, query: Query) -> None:
    first = command(*GREET, "--key", "ada").stdout
    assert command(*GREET, "--key", "ada").stdout == first
    assert command(*GREET, "--job-id", "greet-ada").stdout == "greet-ada\n"
    rows = query("select id, coalesces, enqueued_ms = 0 as chosen from worker.outbox order by seq")
    assert [(row["coalesces"], row["chosen"]) for row in rows] == [(True, False), (True, False), (True, True)]


def test_delay_and_at_say_when_it_is_due(command: Command, query: Query) -> None:
    command(*GREET, "--delay", "90.5")
    command(*GREET, "--at", "2030-01-31T09:00+01:00")
    rows = query("select due_at, extract(epoch from due_at - now())::float as wait from worker.outbox order by seq")
    assert 0 < rows[0]["wait"] <= 90.5
    assert rows[1]["due_at"] == datetime(2030, 1, 31, 8, tzinfo=UTC)


@pytest.mark.leaves_keys("nobody takes the direct job")
def test_direct_goes_past_the_outbox(command: Command, query: Query, redis_url: str) -> None:
    job_id = command(*GREET, "--direct", "--job-id", "greet-ada").stdout.strip()
    assert query("select id from worker.outbox") == []
    with SyncRedis.from_url(redis_url) as redis:
        message = decode(cast("bytes", redis.get(f"arq:job:{job_id}")))
        assert cast("list[bytes]", redis.zrange("arq:queue", 0, -1)) == [b"greet-ada"]
    assert isinstance(message, Message)
    assert not message.from_outbox
    again = command(*GREET, "--direct", "--job-id", "greet-ada", exit_code=1)
    assert "greet-ada is queued already or has a result, so nothing was sent" in again.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("tests.nothing",),
            f"{APP} (WORKER_APP) has no handler of the job 'tests.nothing'; known are tests.count, te",
        ),
        (("tests.greet",), "The payload does not fit tests.greet: name: Field required."),
        (("tests.greet", "--json", "{'name'}"), "The payload does not fit tests.greet: payload: Invalid JSON"),
        (
            ("tests.count", "--json", '{"to": 9, "stpo": 3, "step": 1}'),
            "The payload has 2 keys that tests.count doesn't read; its fields are to, stop.",
        ),
        (
            ("tests.ping", "--json", '{"to": 9}'),
            "The payload has 1 key that tests.ping doesn't read; its fields are none.",
        ),
        (("tests.ping", "--at", "tomorrow"), "--at is 'tomorrow'; give a time in ISO 8601 with a zone"),
        (("tests.ping", "--at", "2030-01-31T09:00"), "--at is '2030-01-31T09:00'; give a time in ISO 8601 with a zone"),
        (("tests.ping", "--at", "2030-01-31T09:00Z", "--delay", "1"), "enqueue got both delay and at"),
        (("tests.ping", "--delay", "-1"), "Invalid value for '--delay'"),
        (("tests.ping", "--key", "a", "--job-id", "b"), "enqueue got both key and job_id"),
        (("tests.ping", "--job-id", "two words"), "enqueue got the job_id 'two words'"),
        (("tests.ping", "--queue", "no queue"), "The queue is called 'no queue'"),
        (("tests.ping", "--direct", "--key", "a"), "--key needs the outbox, and --direct goes past it"),
        (("tests.ping", "--direct", "--queue", "no queue"), "The queue is called 'no queue'"),
    ],
)
def test_what_cant_be_enqueued_is_wrong_usage(
    command: Command, query: Query, args: tuple[str, ...], sentence: str
) -> None:
    refused = command("enqueue", *args, exit_code=2)
    assert sentence in refused.stderr
    assert refused.stdout == ""
    assert query("select id from worker.outbox") == []


def test_no_refusal_quotes_the_payload(command: Command) -> None:
    refused = command("enqueue", "tests.count", "--json", '{"to": "hunter2"}', exit_code=2)
    assert "to: Input should be a valid integer" in refused.stderr
    assert "hunter2" not in refused.stderr


def test_wait_gives_up_after_its_timeout(command: Command) -> None:
    job_id, _ = (result := command(*GREET, "--wait", "--timeout", "0", exit_code=1)).output.splitlines()
    assert f"The job {job_id} hasn't ended within 0 s; it goes on" in result.stderr


def test_wait_takes_what_a_job_id_came_to_before(command: Command, work: Work) -> None:
    command(*GREET, "--job-id", "greet-ada")
    work()
    assert command(*GREET, "--job-id", "greet-ada", "--wait").stdout == 'greet-ada\n{"greeting":"hello Ada"}\n'


def test_wait_doesnt_take_the_result_of_an_earlier_job_of_its_key(command: Command, work: Work) -> None:
    command(*GREET, "--key", "ada")
    work()
    result = command(*GREET, "--key", "ada", "--wait", "--timeout", "0.3", exit_code=1)
    assert "hasn't ended within 0.3 s" in result.stderr


def test_wait_is_refused_where_nothing_would_tell_of_the_end(command: Command, query: Query) -> None:
    result = command("enqueue", "tests.ping", "--wait", WORKER_KEEP_RESULT="0", exit_code=2)
    assert "--wait can't see the end of tests.ping" in result.stderr
    assert query("select id from worker.outbox") == []


async def test_wait_prints_the_result_or_says_why_there_is_none(start_worker: StartWorker) -> None:
    await start_worker("run", WORKER_APP="tests.cli.app:app")

    async def wait_for(*args: str) -> tuple[int, list[str]]:
        process = await start_worker("enqueue", *args, "--wait", "--timeout", "30", WORKER_APP="tests.cli.app:app")
        code = await process.wait()
        return code, process.output.splitlines()

    jobs = (
        (*GREET[1:], "--key", "ada"),
        ("tests.count", "--json", '{"to": 25}'),
        ("tests.ping",),
        ("tests.ping", "--direct"),
        ("tests.fail", "--direct", "--json", '{"reason": "no"}'),
    )
    greeted, counted, pinged, ponged, failed = await asyncio.gather(*(wait_for(*job) for job in jobs))
    assert (greeted[0], json.loads(greeted[1][1])) == (0, {"greeting": "hello Ada"})
    assert (counted[0], json.loads(counted[1][1])) == (0, {"counted": 25})
    assert [(code, json.loads(lines[1])) for code, lines in (pinged, ponged)] == [(0, {"pong": True})] * 2
    assert failed[0] == 1
    assert "is dead: Permanent: no; see worker show" in failed[1][1]


def test_wait_shows_a_live_bar_on_a_terminal_and_only_the_result_on_stdout(
    query: Query, database_url: str, redis_url: str
) -> None:
    query(
        "insert into worker.run (id, enqueued_ms, name, queue, status, from_outbox, done, total, rate, time_left_s) "
        "values ('long', 0, 'tests.count', 'arq:queue', 'yielded', true, 10, 40, 5, 6)"
    )
    terminal, stderr = pty.openpty()
    env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_APP": "tests.cli.app:app"}
    command = (WORKER, "enqueue", "tests.count", "--json", '{"to": 40}', "--job-id", "long", "--wait")
    with Popen(command, stdout=PIPE, stderr=stderr, env={**os.environ, **env, "TERM": "xterm", "COLUMNS": "120"}) as it:
        os.close(stderr)
        seen = b""
        while b"0:00:06 left" not in seen:
            readable, _, _ = select.select([terminal], [], [], 20)
            assert readable, seen
            seen += os.read(terminal, 10_000)
        assert b"10/40" in seen
        assert b"5 rows/s" in seen
        query("update worker.run set status = 'completed', result = '{\"counted\": 40}', finished_at = now()")
        stdout, _ = it.communicate(timeout=20)
    os.close(terminal)
    assert (it.returncode, stdout) == (0, b'long\n{"counted":40}\n')
