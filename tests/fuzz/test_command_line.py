"""Command lines of any words, against real servers."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.cli.conftest import APP, run_command
from worker.cli.commands import make_cli

# Those that end by themselves; `run`, `dev` and `demo` check their options as these do.
COMMAND = st.sampled_from(
    ["enqueue", "runs", "show", "replay", "cancel", "discard", "pause", "resume", "status", "schema", "nonsense"]
)
OPTIONS = (
    "--json --key --job-id --delay --at --queue --direct --status --name --error --limit --all --rate --payload -- -"
)
OPTION = st.sampled_from(OPTIONS.split())
# An argument holds no NUL. Half a surrogate pair stands for a byte that is no UTF-8.
WORD = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80"), max_size=20)
    | st.sampled_from(["tests.greet", '{"name": "a"}', '{"name": "\\u0000"}', '{"name": "\\ud800"}', "[" * 9_999])
    | st.sampled_from(["1e400", "-1", "nan", "9" * 5_000, "9999-12-31T23:59:59-23:59", "0001-01-01T00:00+23:59"])
)


@settings(
    deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(command=COMMAND, words=st.lists(OPTION | WORD, max_size=5))
def test_a_command_line_ends_with_an_exit_code_and_a_sentence(
    database_url: str, redis_url: str, command: str, words: list[str]
) -> None:
    env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_APP": APP, "WORKER_SHOW_PAYLOADS": "true"}
    result = CliRunner().invoke(make_cli(), [command, *words], env=env)
    assert result.exit_code in {0, 1, 2}, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert "The command failed (" not in result.stderr
    if result.exit_code:
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


pytestmark = pytest.mark.leaves_keys("`enqueue --direct` leaves jobs")


@pytest.mark.parametrize(
    "words",
    [
        *(["show", "W"], ["cancel", "W"], ["discard", "W"], ["replay", "W"], ["replay", "--name", "W"], ["W"]),
        *(["runs", "--error", "W"], ["resume", "--queue", "W"], ["enqueue", "tests.greet", "--json", '{"name": "W"}']),
    ],
    ids=" ".join,
)
def test_what_is_no_utf_8_is_wrong_usage(words: list[str]) -> None:
    told = run_command(*(word.replace("W", "caf\udce9") for word in words), exit_code=2).stderr
    assert f"argument {len(words)} is no UTF-8; give it in UTF-8" in told
    assert "caf" not in told


@pytest.mark.parametrize("at", ["0001-01-01T00:00+23:59", "9999-12-31T23:59:59-23:59"])
@pytest.mark.parametrize("way", [[], ["--direct"]])
def test_a_time_beyond_the_calendar_is_wrong_usage(database_url: str, redis_url: str, at: str, way: list[str]) -> None:
    env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_APP": APP}
    told = run_command("enqueue", "tests.ping", "--at", at, *way, exit_code=2, **env).stderr
    assert "in UTC is before year 1 or after 9999" in told
