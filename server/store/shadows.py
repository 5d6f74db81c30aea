"""Shadowing: which version is scored in passing, and how it does."""

from dataclasses import dataclass
from datetime import datetime

from server.store.database import Connection, Pool


@dataclass(frozen=True)
class StoredShadow:
    """What is shadowed since when; version 0 is nothing."""

    id: int
    version: int
    since: datetime
    decisions: int
    agreements: int


async def current(connection: Connection) -> StoredShadow | None:
    """The newest entry, or None before any."""
    row = await connection.fetchrow("SELECT * FROM shadows ORDER BY id DESC LIMIT 1")
    if row is None:
        return None
    return StoredShadow(
        row["id"], row["version"] or 0, row["since"], row["decisions"], row["agreements"]
    )


async def start(connection: Connection, version: int) -> None:
    """Shadows a version from now on; 0 stops it."""
    await connection.execute("INSERT INTO shadows (version) VALUES ($1)", version or None)


async def count(pool: Pool, shadow_id: int, decisions: int, agreements: int) -> None:
    """Adds what a replica has counted."""
    await pool.execute(
        """
        UPDATE shadows SET decisions = decisions + $2, agreements = agreements + $3 WHERE id = $1
        """,
        shadow_id,
        decisions,
        agreements,
    )
