"""Shadowing: the version that is scored in passing, and its counts."""

from dataclasses import dataclass
from datetime import datetime

from recparams_server.store.database import Connection, Pool


@dataclass(frozen=True)
class StoredShadow:
    """An entry of the record of shadowing.

    Attributes:
        id: its number.
        version: the shadowed version; 0 is none.
        since: time it was set.
        decisions: decisions made meanwhile.
        agreements: those of which the shadowed version would have chosen the same action.
    """

    id: int
    version: int
    since: datetime
    decisions: int
    agreements: int


async def current(connection: Connection) -> StoredShadow | None:
    """Returns the newest entry, or None before any."""
    row = await connection.fetchrow("SELECT * FROM shadows ORDER BY id DESC LIMIT 1")
    if row is None:
        return None
    return StoredShadow(
        row["id"], row["version"] or 0, row["since"], row["decisions"], row["agreements"]
    )


async def start(connection: Connection, version: int) -> None:
    """Begins to shadow a version; 0 stops it."""
    await connection.execute("INSERT INTO shadows (version) VALUES ($1)", version or None)


async def count(pool: Pool, shadow_id: int, decisions: int, agreements: int) -> None:
    """Adds the counts of a replica to an entry."""
    await pool.execute(
        """
        UPDATE shadows SET decisions = decisions + $2, agreements = agreements + $3 WHERE id = $1
        """,
        shadow_id,
        decisions,
        agreements,
    )
