"""A worker of one plain arq function that blocks the event loop for longer than it may: `python -m` this module."""

import os
import time
from datetime import timedelta
from typing import Any

from arq.worker import func

from worker import consumer, standalone
from worker.broker import arq_settings

RUNS = "test:runs"
LEASE = timedelta(seconds=0.5)


async def block(ctx: dict[Any, Any]) -> None:
    await ctx["redis"].rpush(RUNS, ctx["job_try"])
    time.sleep(30)  # noqa: ASYNC251 - which is what this is about; its process is ended long before


def main() -> None:
    for module in consumer, standalone:
        setattr(module, "LEASE", LEASE)  # noqa: B010 - it would take half a minute else, and is no export of the first
    settings = arq_settings(os.environ["REDIS_URL"])
    blocking = func(block, name="block", timeout=0.1, max_tries=2)
    consumer.Worker([blocking], redis_settings=settings, burst=True, poll_delay=0.05).run()


if __name__ == "__main__":
    main()
