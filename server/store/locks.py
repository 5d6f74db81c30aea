"""The lock between those who insert people or interactions and those who must see all of them.

Inserts hold its shared side from before they draw an id until they commit (a statement trigger of
`users` and `interactions` takes it); holding the exclusive side waits for those under way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from server.store.database import Connection

R = TypeVar("R")

INSERT_LOCK = 7270001
LONGEST_INSERT_SECONDS = 60.0


async def while_none_inserts(connection: Connection, work: Callable[[], Awaitable[R]]) -> R:
    """Does short work in a transaction during which no insert is under way.

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
