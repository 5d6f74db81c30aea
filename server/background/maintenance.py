"""Keeps the weekly partitions of interactions."""

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from server.store import interactions
from server.store.database import Pool
from server.store.errors import STORE_ERRORS

log = structlog.get_logger()
MAINTENANCE_SECONDS = 3600.0


async def maintain_partitions(pool: Pool, retention: timedelta) -> None:
    """Makes partitions ahead of time and drops those past retention, until cancelled."""
    while True:
        try:
            dropped = await interactions.maintain(pool, datetime.now(UTC), retention)
            if dropped:
                log.info("dropped interactions past retention", partitions=dropped)
        except STORE_ERRORS as failure:
            log.warning("maintenance put off", error=failure)
        await asyncio.sleep(MAINTENANCE_SECONDS)
