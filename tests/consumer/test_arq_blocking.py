"""A plain arq function that ends its process is given up like any other that fails."""

import asyncio
import os
import sys

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job

from tests.consumer.blocking import RUNS
from worker.wire import JobFailed, deserialize


@pytest.mark.leaves_keys("what ran is read after the workers have ended")
async def test_a_function_that_blocks_the_loop_uses_up_a_try_with_each_process_that_it_ends(
    arq: ArqRedis, redis_url: str
) -> None:
    await arq.enqueue_job("block", _job_id="mine")
    codes: list[int | None] = []
    for _ in range(3):  # as a supervisor would
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.consumer.blocking", env={"PATH": os.environ["PATH"], "REDIS_URL": redis_url}
        )
        codes.append(await process.wait())
    assert codes == [os.EX_SOFTWARE, os.EX_SOFTWARE, 0]
    assert await arq.lrange(RUNS, 0, -1) == [b"1", b"2"]  # type: ignore[misc]  # redis-py's stubs allow for a value
    with pytest.raises(JobFailed, match="max 2 retries exceeded"):
        await Job("mine", arq, _deserializer=deserialize).result(timeout=5)
    assert await arq.exists("arq:retry:mine", "arq:job:mine") == 0
