"""What a worker says of itself when it starts: enough to see that it is the one that was meant."""

import pytest

from tests.cli.conftest import APP
from tests.conftest import StartWorker


async def test_a_worker_says_once_what_it_runs(start_worker: StartWorker) -> None:
    worker = await start_worker("run", "--burst", "--queue", "slow", "--queue", "mail=3", WORKER_APP=APP)
    assert await worker.wait() == 0, worker.output
    [started] = [line for line in worker.lines if line.get("event") == "started"]
    assert started.pop("timestamp")
    assert started == {
        "event": "started",
        "level": "info",
        "logger": "worker.start",
        "app": APP,
        "jobs": 6,
        "queues": ["slow", "mail"],
        "concurrency": 10,
    }


async def test_each_process_says_it(start_worker: StartWorker) -> None:
    worker = await start_worker("run", "--burst", "--processes", "2", WORKER_APP=APP)
    assert await worker.wait() == 0, worker.output
    assert len([line for line in worker.lines if line.get("event") == "started"]) == 2


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_an_app_without_handlers_is_refused_in_a_sentence(start_worker: StartWorker, processes: str) -> None:
    worker = await start_worker("run", "--processes", processes, WORKER_APP="tests.cli.app:bare")
    assert await worker.wait() == 2
    told = [line["text"] for line in worker.lines if "event" not in line]
    sentence = "Error: tests.cli.app:bare (WORKER_APP) has no handlers, so nothing can run; give its App one."
    assert set(told) == {sentence}
    assert {line.get("event") for line in worker.lines} <= {None, "process_started", "process_refused"}
