"""One job over and over, with a fault at each await of its way in turn: exactly one effect, and nothing is left.

The list of awaits is read from the syntax trees. One that no scenario leads to, or that nothing strikes, fails the
test.
"""

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.faults import scenarios
from tests.faults.explore import Explorer
from tests.faults.modules import LEFT_OUT, STRUCK
from tests.faults.points import Strikes
from tests.faults.scenarios import Scenario
from tests.faults.sites import instrumented, sites_of
from tests.faults.stage import Stage

pytestmark = pytest.mark.xdist_group("faults")


def module_of(site: str) -> str:
    return site.partition(":")[0]


def test_every_module_that_awaits_is_struck_or_left_out_for_a_reason(modules: dict[str, ModuleType]) -> None:
    awaiting = {name for name, module in modules.items() if sites_of(module)}
    assert awaiting - STRUCK.keys() - LEFT_OUT.keys() == set()
    assert STRUCK.keys() & LEFT_OUT.keys() == set()
    assert (STRUCK.keys() | LEFT_OUT.keys()) - awaiting == set()


def test_the_sites_that_scenarios_wait_for_are_there(modules: dict[str, ModuleType]) -> None:
    """Else they wait for nothing, and what comes after it isn't struck."""
    named = set(re.findall(r'"(\w+:[\w.]+:\d+(?:\.\w+)?)"', Path(scenarios.__file__).read_text()))
    assert named
    assert named - {site.name for module in modules.values() for site in sites_of(module)} == set()


@pytest.mark.skipif("FAULTS" not in os.environ, reason="takes minutes: FAULTS=one strikes each await once, FAULTS=all")
@pytest.mark.filterwarnings(
    "ignore:The garbage collector is trying to clean up:sqlalchemy.exc.SAWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
    "ignore:unclosed Connection:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
async def test_each_job_is_applied_once_whatever_happens_at_any_await(
    modules: dict[str, ModuleType], stage_of: Callable[[Scenario], Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    sites = {site.name: site.source for name in STRUCK for site in sites_of(modules[name])}
    with instrumented(modules.values(), Strikes()):
        everything = os.environ.get("FAULTS") == "all"
        found = await Explorer(sites, stage_of, everything=everything).explore()
    gc.collect()  # while what killed workers have left is expected
    with capsys.disabled():
        print(f"{sum(found.struck.values())} strikes at {len(found.reached)} sites: {dict(found.struck)}")  # noqa: T201
    assert found.wrong == []
    assert {name: source for name, source in sites.items() if name not in found.reached} == {}
    assert found.spared == set(), "these were come to, and nothing struck them"
