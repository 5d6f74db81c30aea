"""Restarts background work that fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Work that went well for this long is restarted after the first pause again."""


async def restarting(work: Callable[[], Awaitable[None]]) -> None:
    """Restarts background work that raises, with growing pauses, so that it never ends silently."""
    pause = FIRST_PAUSE
    while True:
        started = time.monotonic()
        try:
            return await work()
        except Exception as failure:
            if time.monotonic() - started >= LONGEST_PAUSE:
                pause = FIRST_PAUSE
            log.error("background work failed and begins again", exc_info=failure, restart_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
