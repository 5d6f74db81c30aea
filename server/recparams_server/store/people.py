"""People by their ids: the keys that rows have instead, and the stored profiles."""

from collections.abc import Iterable

from recparams_server.contract.vocabulary import Traits
from recparams_server.store.database import Connection

INSERT = """
INSERT INTO users (user_id) SELECT id FROM unnest($1::text[]) AS id ORDER BY id
ON CONFLICT DO NOTHING
"""
# One row with all of them takes less to decode than one for each.
_KEYS = "SELECT array_agg(user_id), array_agg(user_key) FROM users WHERE user_id = ANY($1)"
_PROFILES = """
SELECT user_id, openness, conscientiousness, extraversion, agreeableness, neuroticism
FROM users JOIN personality_profiles USING (user_key) WHERE user_id = ANY($1)
"""


async def insert_missing(connection: Connection, user_ids: set[str]) -> dict[str, int]:
    """Returns the user_keys of people by their ids; those who are not there are made.

    In a transaction that holds `locks.INSERT_LOCK`, so that nobody deletes one of them meanwhile.
    """
    # To insert those who are there already would cost more than to look for them.
    keys = await _keys(connection, list(user_ids))
    new = sorted(user_ids - keys.keys())
    if new:
        await connection.execute(INSERT, new)
        keys |= await _keys(connection, new)
    return keys


async def _keys(connection: Connection, user_ids: list[str]) -> dict[str, int]:
    row = await connection.fetchrow(_KEYS, user_ids)
    assert row is not None  # noqa: S101 - an aggregate has one
    ids, keys = row
    return dict(zip(ids or (), keys or (), strict=True))


async def profiles(connection: Connection, user_ids: Iterable[str]) -> dict[str, Traits]:
    """Returns the stored profiles of these people, by user id."""
    rows = await connection.fetch(_PROFILES, list(user_ids))
    return {row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in rows}
