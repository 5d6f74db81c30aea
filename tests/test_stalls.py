"""The event loop's stalls are measured, remembered for a while, and forgotten."""

import asyncio
import time

from recparams_server.observability.stalls import StallMeter
from tests.faults import eventually

STALL = 0.5


async def test_a_stall_is_remembered_and_then_forgotten() -> None:
    meter = StallMeter(window=0.2)
    following = asyncio.create_task(meter.follow())
    await asyncio.sleep(0.05)
    time.sleep(STALL)  # noqa: ASYNC251 - it is what is measured
    await asyncio.sleep(0.02)
    assert meter.longest > STALL / 2

    async def is_forgotten() -> bool:
        return meter.longest < STALL / 2

    await eventually(is_forgotten)
    following.cancel()
