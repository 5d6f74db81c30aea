"""Counts how often the shadowed version agrees with what is served."""

import asyncio
import contextlib

from recparams_server.serving.policies import PolicyHolder
from recparams_server.store import shadows
from recparams_server.store.database import Pool
from recparams_server.store.errors import STORE_ERRORS

SHADOW_SECONDS = 5.0


async def count_shadow(holder: PolicyHolder, pool: Pool) -> None:
    """Adds what this replica has counted of the shadowed version, until cancelled."""
    while True:
        await asyncio.sleep(SHADOW_SECONDS)
        with contextlib.suppress(*STORE_ERRORS):
            await flush_shadow(holder, pool)


async def flush_shadow(holder: PolicyHolder, pool: Pool) -> None:
    """Writes the counts; those that could not be written are kept for the next time."""
    shadow = holder.serving.shadow
    if shadow is None or not shadow.decisions:
        return
    decisions, agreements = shadow.decisions, shadow.agreements
    await shadows.count(pool, shadow.id, decisions, agreements)
    shadow.decisions -= decisions
    shadow.agreements -= agreements
