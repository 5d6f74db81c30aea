"""The advisory locks of Postgres that servers, trainers and migrations share."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from recparams_server.store.database import Connection

R = TypeVar("R")

MIGRATION_LOCK = 7270000
"""Held by the transaction that migrates the schema."""
INSERT_LOCK = 7270001
"""Shared by inserts of people and interactions, exclusive for those who must see all of them.

Inserts hold the shared side from before they draw an id until they commit: a statement trigger of
`users` and `interactions` takes it, by this number. The exclusive side waits for those under way.
"""
TRAINER_LOCK = 7270002
"""Held by a trainer from before its run is marked running until after it has ended."""
MAINTENANCE_LOCK = 7270004
"""Held by the replica that makes and drops partitions."""
WATCH_LOCK = 7270005
"""Held by the replica that compares the arms of a rollout."""
SCHEDULE_LOCK = 7270006
"""Held by the replica that starts a scheduled run."""
TUNING_LOCK = 7270007
"""Held by a tuning: there is one at a time."""
LONGEST_INSERT_SECONDS = 60.0


async def try_lock(connection: Connection, lock: int) -> bool:
    """Takes a lock for the session, unless another session holds it.

    The pool releases it when the connection is given back.

    Returns:
        True if the lock is held now.
    """
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", lock))


async def while_none_inserts(connection: Connection, work: Callable[[], Awaitable[R]]) -> R:
    """Does short work in a transaction during which no insert is under way, and returns its result.

    It waits in short turns, for the lock and for what the work itself locks, because new inserts
    queue behind whoever waits for the exclusive side. A turn that fails is rolled back.

    Raises:
        TimeoutError: an insert stays under way for `LONGEST_INSERT_SECONDS`.
    """
    deadline = time.monotonic() + LONGEST_INSERT_SECONDS
    while time.monotonic() < deadline:
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '500ms'")
                await connection.execute("SELECT pg_advisory_xact_lock($1)", INSERT_LOCK)
                return await work()
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(0.5)
    raise TimeoutError(
        f"an insert of interactions has been under way for {LONGEST_INSERT_SECONDS:g} s"
    )
