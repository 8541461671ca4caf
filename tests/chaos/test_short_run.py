"""One short seed of the whole: a shop, three workers, eight faults, and the judge."""

import asyncio
from pathlib import Path

from tests.chaos.run import Options, play
from tests.chaos.stage import Secrets

SEED, ORDERS, FAULTS = 11, 100, 8


def test_a_short_run_satisfies_the_judge(tmp_path: Path) -> None:
    options = Options(SEED, ORDERS, FAULTS, minutes=1.1, lease_s=2, processes=(1, 1, 1))
    report = asyncio.run(play(options, tmp_path, Secrets("pw-planted", "tk-planted"), lambda _: None))
    assert [verdict for verdict in report.verdicts if not verdict.holds] == []
    assert sum(report.faults.values()) == FAULTS
    assert report.effects > 2 * ORDERS
