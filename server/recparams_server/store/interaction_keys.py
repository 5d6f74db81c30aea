"""The ids of all stored interactions, as hashes: what makes recording idempotent.

An id without its key could be recorded, and trained, again.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

import numpy as np

from recparams_server.contract.interaction import NewInteractions, to_instant
from recparams_server.store.database import Connection
from recparams_server.store.interaction_rows import EPOCH, HEADER, TRAILER
from recparams_server.turns import turn

KEY_BYTES = 16
_HASH = hashlib.sha256()
_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("bytes of key", ">i4"),
        ("key", f"S{KEY_BYTES}"),
        ("bytes of occurred_at", ">i4"),
        ("occurred_at", ">i8"),
    ]
)
_INSERT = """
WITH added AS (
    INSERT INTO interaction_keys (key, occurred_at)
    SELECT key, occurred_at FROM unnest($1::uuid[], $2::timestamptz[]) AS input (key, occurred_at)
    ORDER BY key
    ON CONFLICT DO NOTHING
    RETURNING key
)
SELECT array_agg(key) FROM added
"""
_DELETE = """
DELETE FROM interaction_keys
WHERE key = ANY(ARRAY(SELECT interaction_key(id) FROM unnest($1::text[]) AS id))
"""
# Keys outlive their week's partition.
_DELETE_EXPIRED = """
DELETE FROM interaction_keys
WHERE occurred_at < $1
    AND to_regclass('interactions_' || to_char(occurred_at AT TIME ZONE 'UTC', 'IYYY"w"IW')) IS NULL
"""


def key_of(interaction_id: str) -> bytes:
    """Returns the 16 bytes that an id is known by, as `interaction_key` in the database."""
    # To copy a hash is quicker than to make one.
    hashed = _HASH.copy()
    hashed.update(interaction_id.encode())
    return hashed.digest()[:KEY_BYTES]


async def add_all(connection: Connection, given: NewInteractions) -> None:
    """Stores the keys of interactions of which none is stored yet.

    Raises asyncpg.UniqueViolationError if one is.
    """
    keys = list(map(key_of, given.ids))
    await turn()
    # Messages that share keys lock them in one order, here and in `add_new`.
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = np.empty(len(keys), dtype=_ROW)
    rows["fields"], rows["bytes of key"], rows["bytes of occurred_at"] = 2, KEY_BYTES, 8
    rows["key"] = [keys[place] for place in order]
    rows["occurred_at"] = given.fields["occurred_at"][order] - EPOCH

    async def source() -> AsyncIterator[bytes]:
        yield HEADER + rows.tobytes() + TRAILER

    await connection.copy_to_table(
        "interaction_keys", source=source(), columns=("key", "occurred_at"), format="binary"
    )


async def add_new(connection: Connection, given: NewInteractions) -> NewInteractions:
    """Stores the keys of those interactions that are not stored yet, and returns these."""
    keys = list(map(key_of, given.ids))
    instants = list(map(to_instant, given.fields["occurred_at"].tolist()))
    added = await connection.fetchval(_INSERT, [UUID(bytes=key) for key in keys], instants)
    new = {key.bytes for key in added or ()}
    return given.at([place for place, key in enumerate(keys) if key in new])


async def delete(connection: Connection, interaction_ids: Sequence[str]) -> str:
    """Deletes the keys of some ids; returns the status, which ends with their number."""
    return await connection.execute(_DELETE, interaction_ids)


async def delete_expired(connection: Connection, before: datetime) -> None:
    """Deletes the keys of interactions that occurred before, where their partition is gone."""
    await connection.execute(_DELETE_EXPIRED, before)
