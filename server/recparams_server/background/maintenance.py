"""Keeps the weekly partitions of interactions, and so many model versions."""

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from recparams_server.store import deletion, interactions
from recparams_server.store.database import Pool
from recparams_server.store.errors import STORE_ERRORS

log = structlog.get_logger()
MAINTENANCE_SECONDS = 3600.0


async def maintain(pool: Pool, retention: timedelta, versions: int) -> None:
    """Makes partitions ahead of time and drops those past retention, until cancelled.

    Deletes model versions as well that are not in use, but for so many of the newest; 0 keeps all.
    """
    while True:
        try:
            dropped = await interactions.maintain(pool, datetime.now(UTC), retention)
            if dropped:
                log.info("dropped interactions past retention", partitions=dropped)
            deleted = await deletion.prune(pool, versions) if versions else []
            if deleted:
                log.info("deleted old model versions", versions=deleted)
        except STORE_ERRORS as failure:
            log.warning("maintenance put off", error=failure)
        await asyncio.sleep(MAINTENANCE_SECONDS)
