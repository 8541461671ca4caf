"""`worker demo`, as a new user runs it; smaller."""

from tests.support.processes import WorkerProcess


async def test_the_demo_ends_by_itself_with_every_invariant_held() -> None:
    demo = await WorkerProcess.start("demo", "--orders", "300", env={"COLUMNS": "160"})
    try:
        code = await demo.wait(timeout=150)
    finally:
        await demo.kill()
    broken = [line for line in demo.output.splitlines() if "BROKEN" in line]
    assert code == bool(broken), demo.output
    # How long a takeover takes on a busy machine is the demo's to judge, and no test's.
    assert [line for line in broken if "elsewhere within" not in line] == [], demo.output
    assert "jobs were done elsewhere" in demo.output
    for claim in ("every order paid once", "stock never negative", "killed worker's jobs went on elsewhere"):
        assert claim in demo.output
