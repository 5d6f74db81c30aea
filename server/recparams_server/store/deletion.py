"""The deletion of model versions that nothing uses."""

from collections.abc import Sequence
from typing import Any

from recparams_rl.arms import RULES_VERSION, Activation
from recparams_server.store import activations, shadows, tasks, training
from recparams_server.store.database import Connection, Pool

SERVED = "is served"
ROLLBACKS = "is one that rollbacks lead to"
TRAINED_ON = "is the one that training goes on from"
WAITS = "waits for its rollout"
SHADOWED = "is shadowed"
_SIZES = """
SELECT version, coalesce(octet_length(q_table), 0) + coalesce(octet_length(learner), 0)
    + octet_length(policy) AS bytes
FROM model_versions
"""
_CHAIN = """
WITH RECURSIVE chain AS (
    SELECT id, version, baseline, rollback_to FROM model_activations WHERE id = $1
    UNION
    SELECT a.id, a.version, a.baseline, a.rollback_to
    FROM model_activations AS a JOIN chain AS c ON a.id = c.rollback_to
)
SELECT version FROM chain WHERE version IS NOT NULL
UNION SELECT baseline FROM chain WHERE baseline IS NOT NULL
"""


async def in_use(connection: Connection, current: Activation) -> dict[int, str]:
    """Returns the versions that have to be kept, each with its use, the end of a sentence.

    Args:
        connection: where to read.
        current: what is served; the result holds for as long as that is locked.
    """
    chain = await connection.fetch(_CHAIN, current.id)
    used = {row["version"]: ROLLBACKS for row in chain}
    base = await training.base_version(connection)
    if base is not None:
        used[base] = TRAINED_ON
    waiting = await tasks.waiting_version(connection)
    if waiting is not None:
        used[waiting["version"]] = WAITS
    shadow = await shadows.current(connection)
    if shadow is not None and shadow.version:
        used[shadow.version] = SHADOWED
    used |= {arm.version: SERVED for arm in current.arms().values()}
    used.pop(RULES_VERSION, None)
    return used


async def stored(connection: Connection, versions: Sequence[int]) -> dict[int, int]:
    """Returns the bytes that each of some versions takes; those that there are not are left out."""
    return _bytes(await connection.fetch(_SIZES + "WHERE version = ANY($1::bigint[])", versions))


async def beyond(connection: Connection, newest: int) -> dict[int, int]:
    """Returns the versions that are not among so many of the newest, with the bytes of each."""
    return _bytes(await connection.fetch(_SIZES + "ORDER BY version DESC OFFSET $1", newest))


def _bytes(rows: Sequence[Any]) -> dict[int, int]:
    return {row["version"]: row["bytes"] for row in rows}


async def delete(connection: Connection, versions: Sequence[int]) -> None:
    """Deletes versions; the caller has seen, in the same transaction, that none is in use."""
    await connection.execute(
        "DELETE FROM model_versions WHERE version = ANY($1::bigint[])", versions
    )


async def prune(pool: Pool, newest: int) -> list[int]:
    """Deletes all versions but so many of the newest and those in use; returns their numbers."""
    async with pool.acquire() as connection:
        if not await beyond(connection, newest):
            return []
        async with connection.transaction():
            kept = await in_use(connection, await activations.lock(connection))
            old = sorted(set(await beyond(connection, newest)) - set(kept))
            await delete(connection, old)
    return old
