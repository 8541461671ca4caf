"""`worker demo`, as a new user runs it; smaller."""

from tests.support.processes import WorkerProcess


async def test_the_demo_ends_by_itself_with_every_invariant_held() -> None:
    demo = await WorkerProcess.start("demo", "--orders", "300", env={"COLUMNS": "160"})
    try:
        code = await demo.wait(timeout=150)
    finally:
        await demo.kill()
    assert code == 0, demo.output
    assert "BROKEN" not in demo.output
    for claim in ("every order paid once", "stock never negative", "killed worker's jobs went on elsewhere"):
        assert claim in demo.output
