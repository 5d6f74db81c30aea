"""Deletion of all that is stored about a person."""

from dataclasses import dataclass

from recparams_server.store import interaction_keys
from recparams_server.store.database import Connection, Pool
from recparams_server.store.locks import while_none_inserts
from recparams_server.store.profiles import PROFILES_CHANNEL


@dataclass(frozen=True)
class Deleted:
    """The numbers of deleted rows."""

    interactions: int = 0
    interaction_keys: int = 0
    profiles: int = 0
    users: int = 0


async def delete(pool: Pool, user_id: str) -> Deleted:
    """Deletes all rows of a person, or none. Raises TimeoutError as `while_none_inserts`."""
    async with pool.acquire() as connection:
        return await while_none_inserts(connection, lambda: _delete(connection, user_id))


async def _delete(connection: Connection, user_id: str) -> Deleted:
    user_key = await connection.fetchval("SELECT user_key FROM users WHERE user_id = $1", user_id)
    if user_key is None:
        return Deleted()
    # The profile comes first, as where the trainer fills profiles in: they must not deadlock.
    profiles = await connection.execute(
        "DELETE FROM personality_profiles WHERE user_key = $1", user_key
    )
    interactions = await connection.fetch(
        "DELETE FROM interactions WHERE user_key = $1 RETURNING interaction_id", user_key
    )
    keys = await interaction_keys.delete(
        connection, [row["interaction_id"] for row in interactions]
    )
    users = await connection.execute("DELETE FROM users WHERE user_key = $1", user_key)
    await connection.execute("SELECT pg_notify($1, $2)", PROFILES_CHANNEL, user_id)
    return Deleted(len(interactions), _count(keys), _count(profiles), _count(users))


def _count(status: str) -> int:
    return int(status.rsplit(" ", 1)[1])
