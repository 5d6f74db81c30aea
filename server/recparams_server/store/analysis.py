"""Recorded interactions for analysis, as they are read from the database."""

from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg

from recparams_rl.state import TRAITS
from recparams_server.store.database import Connection

ROWS_AT_A_TIME = 1 << 13

# As training sees it: a profile that was stored later fills in where there was none.
_ROWS = f"""
SELECT i.id, i.occurred_at, u.user_id,
    {", ".join(f"coalesce(i.{trait}, p.{trait})" for trait in TRAITS)},
    i.content_type, i.mood, i.time_of_day, i.action, i.reactions, i.completion_rate, i.mood_change,
    i.propensity, i.policy_arm, i.model_version, i.source
FROM interactions AS i
JOIN users AS u USING (user_key)
LEFT JOIN personality_profiles AS p USING (user_key)
WHERE i.occurred_at >= $1
ORDER BY i.id
"""  # noqa: S608 - constant column names


async def count(connection: Connection, since: datetime) -> int:
    """Returns the number of interactions since an instant."""
    found = await connection.fetchval(
        "SELECT count(*) FROM interactions WHERE occurred_at >= $1", since
    )
    return int(found)


async def read(connection: Connection, since: datetime) -> AsyncIterator[list[asyncpg.Record]]:
    """Yields interactions since an instant in order of arrival, `ROWS_AT_A_TIME` or fewer.

    Has to be within a transaction. Rows are id, time, user id, five scores, content type, mood,
    time of day, action, reactions, completion rate, mood change, propensity, arm, version and
    source, in the contract's numbers.
    """
    cursor = await connection.cursor(_ROWS, since)
    while rows := await cursor.fetch(ROWS_AT_A_TIME):
        yield rows
