"""How long it takes until others go on, measured where no server was away meanwhile."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from tests.chaos.stage import Stage

LOOK_EVERY_S = 0.05
GIVE_UP_S = 60.0

_FINAL = "select array_agg(distinct id) from worker.run where id = any($1::text[]) and finished_at is not null"
_UNSENT = """
select count(*) from worker.outbox, worker.relay_state as state
where state.epoch <= $1 or seq <= $2 and not coalesces and (sent_epoch is null or sent_epoch < state.epoch)
"""


def watch(stage: Stage, watching: Coroutine[Any, Any, None]) -> None:
    """Beside whatever else goes on; the run waits for it at its end."""
    task = asyncio.create_task(watching)
    stage.watches.add(task)
    task.add_done_callback(stage.watches.discard)


async def taken_over(stage: Stage, held: Mapping[str, bytes]) -> None:
    """Until each of these jobs, which a killed worker held by these tokens, is held by another or is final."""
    began = time.monotonic()
    left = dict(held)
    while time.monotonic() - began < GIVE_UP_S and stage.was_whole(began):
        for job_id, token in (await stage.tokens(list(left))).items():
            if token != left[job_id]:
                del left[job_id]
        for job_id in await stage.value(_FINAL, list(left)) or ():
            del left[job_id]
        if not left:
            stage.takeovers_s.append(time.monotonic() - began)
            return
        await asyncio.sleep(LOOK_EVERY_S)


async def refilled(stage: Stage, epoch: int, last: int) -> None:
    """Until the outbox up to `last` was sent in a later epoch than `epoch`. A Redis that is empty has just returned."""
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S and stage.was_whole(began + 1):
        if await stage.value(_UNSENT, epoch, last) == 0:
            stage.refills_s.append(time.monotonic() - began)
            return
        await asyncio.sleep(LOOK_EVERY_S)
