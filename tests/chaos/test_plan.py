"""The plan comes from the seed, and from nothing else."""

from tests.chaos.faults import ACTS
from tests.chaos.plan import HEAVY_AT_MOST, KINDS, WITNESS, by_kind, plan, span_s

CHEAP = {kind.name for kind in KINDS if kind.cheap}
SPARING = {kind.name for kind in KINDS if kind.spares_witness}


def test_a_seed_gives_the_same_plan_again_and_another_one_another() -> None:
    assert plan(7, 50, 100) == plan(7, 50, 100)
    assert plan(7, 50, 100) != plan(8, 50, 100)


def test_each_kind_comes_before_any_comes_twice() -> None:
    assert set(by_kind(plan(1, len(KINDS), 60)).values()) == {1}
    assert set(by_kind(plan(1, 10, 60)).values()) == {0, 1}


def test_a_kill_and_a_wipe_may_come_first_to_be_measured() -> None:
    first, second, third, *_ = faults = plan(1, 40, 60, quiet_s=9)
    assert [(first.kind, first.at_s), (second.kind, second.at_s)] == [("kill worker", 1), ("wipe valkey", 10)]
    assert third.at_s >= 19
    assert [fault.number for fault in faults] == list(range(40))


def test_each_kind_can_be_done() -> None:
    assert ACTS.keys() == {kind.name for kind in KINDS}


def test_many_faults_are_cheap_ones_and_end_in_time() -> None:
    faults = plan(1, 1_000, 240)
    assert sum(fault.kind not in CHEAP for fault in faults) <= HEAVY_AT_MOST
    assert span_s(faults) < 250


def test_the_witness_is_never_ended() -> None:
    assert [fault for fault in plan(1, 500, 240) if fault.worker == WITNESS and fault.kind in SPARING] == []
