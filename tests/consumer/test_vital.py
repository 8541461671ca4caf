"""A worker doesn't go on without its relay, schedule or pauses: it tells, ends in order, and is started anew."""

import asyncio
import os
from typing import Any

import pytest

from tests.consumer.jobs import PING
from tests.consumer.told import Told
from worker import runtime
from worker.app import App
from worker.pauses import Pauses
from worker.relay import Relay
from worker.runtime import run_worker
from worker.settings import load_settings
from worker.ticker import Ticker


async def fails(*_: Any) -> None:
    raise LookupError("a defect")


@pytest.mark.parametrize(
    ("owner", "method", "name"),
    [
        (Relay, "run", "relay"),
        (Ticker, "run", "ticker"),
        (Pauses, "run", "pauses"),
        (runtime, "listen", "listen"),
        (runtime, "listen_for_wakes", "wake"),
    ],
)
async def test_a_part_that_fails_is_told_and_ends_the_process(
    owner: object, method: str, name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, fails)
    told = Told()
    async with asyncio.timeout(20):
        with pytest.raises(SystemExit) as end:
            await run_worker(App(handlers=[PING]), load_settings(**settings), told)
    assert end.value.code == os.EX_SOFTWARE
    assert [(part, str(error)) for part, error in told.faults] == [(name, "a defect")]
