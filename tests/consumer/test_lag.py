"""A job that blocks the event loop is told of by name, while it does."""

import time

from arq.connections import ArqRedis

from tests.consumer.conftest import Logged, Work
from tests.consumer.jobs import Ping, calling
from tests.support.waiting import wait_until
from worker.outcome import Completed
from worker.queue import Queue


def lines(logged: Logged, event: str) -> list[dict[str, object]]:
    return [dict(line) for line in logged if line["event"] == event]


async def test_a_job_that_blocks_the_loop_is_named_with_its_line_and_its_lease_is_kept(
    arq: ArqRedis, work: Work, logged: Logged
) -> None:
    def block() -> None:
        until = time.monotonic() + 20
        while not lines(logged, "event_loop_blocked") and time.monotonic() < until:
            time.sleep(0.01)

    async with work(calling(block)) as worker:
        job_id = await Queue(arq).enqueue(Ping()) or ""
        assert isinstance(await worker.outcome(job_id), Completed)

        async def is_free() -> bool:
            return bool(lines(logged, "event_loop_free"))

        await wait_until(is_free)
    [blocked] = lines(logged, "event_loop_blocked")
    assert blocked["job"] == "ping"
    assert "test_lag.py" in str(blocked["at"])
    assert [line["event"] for line in logged if line["event"] == "lease_was_lost"] == []
