"""The parts of the bench that need no peer: the tally, the rate, our app, the list of cases, the peers' locks."""

import re
from pathlib import Path

import pytest

from bench.app import JOBS, app
from bench.cases.table import CASES
from bench.contenders import ENVIRONMENTS, POSTGRES_PEERS, REDIS_PEERS, ROOT, Contender
from bench.drive import rate
from bench.tally import Tally


def test_a_tally_is_shared_and_sees_what_is_lost_or_doubled(tmp_path: Path) -> None:
    mine = Tally.create(tmp_path / "tally", 4)
    theirs = Tally(tmp_path / "tally", 4)
    theirs.mark(0)
    theirs.mark_many([1, 2])
    theirs.mark(1)
    assert (mine.started, mine.doubled) == (3, 1)
    assert len(mine.starts) == 3
    assert mine.starts[1] >= mine.starts[2]


def test_the_rate_leaves_out_what_started_with_the_last() -> None:
    assert rate([0.0, 1.0, 2.0]) == 1
    assert rate([0.0, 0.0, 1.0, 1.0, 2.0, 2.0]) == 2  # batches of two, one a second
    assert rate([5.0]) == 0


def test_our_app_has_a_handler_for_every_job() -> None:
    assert {job.job_name for job in JOBS.values()} == set(app.handlers)


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("peer", [*REDIS_PEERS, *POSTGRES_PEERS], ids=lambda peer: peer.name)
def test_every_peer_has_its_script_and_a_lock_with_hashes(peer: Contender) -> None:
    folder = ROOT / "bench" / "peers" / peer.environment
    assert peer.python.startswith(str(ENVIRONMENTS / peer.environment))
    assert peer.module == f"bench.peers.{peer.environment}.peer"
    assert (folder / "peer.py").exists()
    lock = (folder / "requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9_.-]+==", lock, re.MULTILINE)
    assert pins
    assert lock.count("--hash=sha256:") >= len(pins)
    assert "://" not in lock
