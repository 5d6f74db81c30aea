"""Interactions of a tuning, and what the last one found: one row."""

from datetime import datetime

from recparams.v1.tuning_pb2 import Tuning
from recparams_server.store.columns import INTERACTIONS
from recparams_server.store.database import Connection, Pool

_SHARES = 65536

QUERY = f"""
SELECT {INTERACTIONS.select_list} FROM interactions AS i
WHERE i.occurred_at >= $1 AND i.occurred_at < $2 AND (hashint8(i.user_key) & 65535) < $3
"""  # noqa: S608 - constant column names
"""Interactions of a period, of those people whose hash lies below a number."""


async def count(connection: Connection, start: datetime, end: datetime) -> int:
    """Returns the number of interactions of a period, half open."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM interactions WHERE occurred_at >= $1 AND occurred_at < $2", start, end
    )
    return found


def people_below(interactions: int, most: int) -> int:
    """Returns the number for `QUERY` with which about `most` of some interactions are read."""
    return _SHARES if interactions <= most else _SHARES * most // interactions


async def newest(connection: Connection | Pool) -> Tuning | None:
    """Returns what the last tuning found, or None."""
    found = await connection.fetchval("SELECT found FROM tuning")
    return None if found is None else Tuning.FromString(found)


async def put(connection: Connection, tuning: Tuning) -> None:
    """Stores a tuning in place of the one before."""
    await connection.execute(
        """
        INSERT INTO tuning (found) VALUES ($1)
        ON CONFLICT (only_row) DO UPDATE SET found = excluded.found
        """,
        tuning.SerializeToString(),
    )
