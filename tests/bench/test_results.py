"""Ratios are taken within blocks, runs that don't count are left out, and targets are read from the median."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.blocks import contest, order
from bench.report import show, write
from bench.results import (
    Block,
    CaseResult,
    Comparison,
    Run,
    Spread,
    Target,
    best,
    block_ratio,
    figures,
    ratio,
    tails,
)


def block(*runs: tuple[str, float]) -> Block:
    return [(name, Run(value)) for name, value in runs]


def test_ours_runs_between_every_two_of_the_others() -> None:
    assert order("ours", ["a", "b", "c"], 0) == ["ours", "a", "b", "ours", "c", "ours"]
    assert order("ours", ["a", "b", "c"], 1) == ["ours", "b", "c", "ours", "a", "ours"]
    assert order("ours", [], 2) == ["ours"]


def test_a_contest_keeps_the_order_of_its_runs() -> None:
    said: list[str] = []
    measures = {"ours": lambda: Run(2.0), "a": lambda: Run(1.0)}
    blocks = contest("ours", measures, 2, lambda name, _run: said.append(name))
    assert [[name for name, _ in made] for made in blocks] == [["ours", "a", "ours"]] * 2
    assert said == ["ours", "a", "ours"] * 2


def test_a_steady_drift_within_a_block_cancels_out() -> None:
    """The machine gets slower by 10 a run; theirs is half as fast as ours would have been at that moment."""
    drifting = block(("ours", 100), ("theirs", 45), ("ours", 80))
    assert block_ratio(drifting, "ours", "theirs") == pytest.approx(2)
    assert block_ratio(drifting, "theirs", "ours") == pytest.approx(0.5)


def test_each_run_is_compared_with_its_neighbours() -> None:
    """Ours fell to a half; each of theirs is compared with what ours was around it."""
    fallen = block(("ours", 100), ("a", 50), ("ours", 100), ("ours", 50), ("b", 25), ("ours", 50))
    assert block_ratio(fallen, "ours", "a") == pytest.approx(2)
    assert block_ratio(fallen, "ours", "b") == pytest.approx(2)


def test_blocks_are_never_mixed() -> None:
    """A machine that was four times slower in the second block changes no ratio."""
    spread = ratio([block(("ours", 300), ("a", 100)), block(("ours", 75), ("a", 25))], "ours", "a")
    assert spread == Spread(3, 3, 3, (3, 3))


def test_a_run_that_does_not_count_is_shown_and_left_out() -> None:
    spoilt, dead = Run(9.0, "3 jobs started twice"), Run(None, "died")
    blocks = [[("ours", Run(2.0)), ("a", spoilt), ("a", Run(1.0)), ("a", dead)]]
    ours, theirs = figures(blocks, "no-op", "jobs/s")
    assert list(ours.spread.values) == [2]
    assert list(theirs.spread.values) == [1]
    assert theirs.spoilt == ("3 jobs started twice", "died")
    assert ratio(blocks, "ours", "a").median == 2


def test_nothing_measured_is_no_ratio_and_no_miss() -> None:
    spread = ratio([[("ours", Run(2.0)), ("a", Run(None, "died"))]], "ours", "a")
    made = Comparison("ours ÷ a", spread, Target(at_least=1))
    assert (spread.median, made.reached) == (None, None)


def test_the_median_decides_whether_a_target_is_reached() -> None:
    at_least = Target(at_least=2)
    assert Comparison("", Spread.of([1.0, 2.0, 9.0]), at_least).reached
    assert not Comparison("", Spread.of([1.0, 1.9, 9.0]), at_least).reached
    assert Comparison("", Spread.of([3.0]), Target(at_most=3)).reached
    assert not Comparison("", Spread.of([3.1]), Target(at_most=3)).reached


def test_the_best_is_the_greatest_or_the_least() -> None:
    found = figures([block(("ours", 9), ("a", 1), ("b", 2))], "", "")
    assert best(found, ["a", "b"]) == "b"
    assert best(found, ["a", "b"], least=True) == "a"
    assert best(found, ["c"]) is None


def test_tails_stand_in_the_same_places() -> None:
    assert tails([[("a", Run(1.0, "", 7.0))]]) == [[("a", Run(7.0))]]


def test_results_are_written_and_shown(tmp_path: Path) -> None:
    blocks = [[("ours", Run(2.0)), ("a", Run(1.0)), ("b", Run(None, "[lost] 1 of 2"))]]
    result = CaseResult("noop", "no-op", figures(blocks, "no-op", "jobs/s"))
    result.comparisons = [Comparison("ours ÷ a", ratio(blocks, "ours", "a"), Target(at_least=3))]
    write(tmp_path / "results.json", {"rounds": 1}, [result])
    content = json.loads((tmp_path / "results.json").read_text())
    (case,) = content["cases"]
    assert content["about"] == {"rounds": 1}
    assert [figure["spread"]["median"] for figure in case["figures"]] == [2.0, 1.0, None]
    assert case["comparisons"] == [
        {
            "what": "ours ÷ a",
            "spread": {"median": 2.0, "low": 2.0, "high": 2.0, "values": [2.0]},
            "target": "≥ 3",
            "reached": False,
        }
    ]
    console = Console(record=True, width=100)
    show(console, result)
    shown = console.export_text()
    assert "missed" in shown
    assert "A run of b doesn't count: [lost] 1 of 2" in shown
