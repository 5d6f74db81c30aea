"""Interactions: idempotent inserts, and the upkeep of weekly partitions."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray

from recparams_rl.state import TRAITS
from recparams_server.contract.interaction import (
    FIELDS,
    NewInteractions,
    are_unknown,
    to_instant,
)
from recparams_server.store import interaction_keys, interaction_rows, people
from recparams_server.store.database import Connection, Pool
from recparams_server.store.interaction_rows import INSTANTS
from recparams_server.store.locks import INSERT_LOCK, MAINTENANCE_LOCK, try_lock
from recparams_server.turns import turn

PARTITIONS_AHEAD = 4
FEW = 50
"""Interactions that one statement stores; more are worth the round trips of COPY."""
SLICE_ROWS = 500
"""Rows that are encoded at a time: all of a full message would hold others up."""

_TYPES = {"i2": "smallint", "i8": "bigint", "f4": "real"}
_FIELDS = {
    name: "timestamptz" if name in INSTANTS else _TYPES[FIELDS[name].str[1:]]
    for name in FIELDS.names or ()
}
_COLUMNS = {"key": "uuid", "interaction_id": "text", "user_id": "text", **_FIELDS}
_OTHERS = ["interaction_id", *(name for name in _FIELDS if name not in TRAITS)]

# Rows arrive as one array a column. The stored profile fills in for rows without traits.
_ALL_AT_ONCE = f"""
WITH input AS (
    SELECT * FROM
        unnest({", ".join(f"${i}::{kind}[]" for i, kind in enumerate(_COLUMNS.values(), 1))})
        WITH ORDINALITY AS input ({", ".join(_COLUMNS)}, position)
), keys AS (
    INSERT INTO interaction_keys (key, occurred_at)
    SELECT key, occurred_at FROM input ORDER BY key
    ON CONFLICT DO NOTHING
    RETURNING key
)
INSERT INTO interactions (user_key, {", ".join([*_OTHERS, *TRAITS])})
SELECT users.user_key, {", ".join(f"input.{name}" for name in _OTHERS)},
    {", ".join(f"coalesce(input.{name}, profile.{name})" for name in TRAITS)}
FROM input
JOIN keys USING (key)
JOIN users USING (user_id)
LEFT JOIN personality_profiles AS profile ON profile.user_key = users.user_key
ORDER BY position
RETURNING interaction_id
"""  # noqa: S608 - only constant column names are put in


async def record(pool: Pool, given: NewInteractions) -> NewInteractions:
    """Stores interactions, all or none, and returns those that were new, after the commit.

    Args:
        pool: the database.
        given: with distinct ids.
    """
    if len(given) <= FEW:
        return await _in_partitions(pool, given, _insert)
    try:
        return await _in_partitions(pool, given, _copy_all)
    except asyncpg.UniqueViolationError:
        # To look for those that are stored already takes longer, and hardly ever there are any.
        return await _in_partitions(pool, given, _copy_new)


_Store = Callable[[Connection, NewInteractions], Awaitable[NewInteractions]]


async def _in_partitions(pool: Pool, given: NewInteractions, store: _Store) -> NewInteractions:
    """Stores interactions in a transaction, and makes the partitions that are missing first."""
    try:
        async with pool.acquire() as connection, connection.transaction():
            return await store(connection, given)
    except asyncpg.CheckViolationError as failure:
        if "no partition" not in str(failure):
            raise
    async with pool.acquire() as connection:
        for week in sorted({_week(to_instant(at)) for at in given.fields["occurred_at"].tolist()}):
            await ensure_partition(connection, week)
    async with pool.acquire() as connection, connection.transaction():
        return await store(connection, given)


async def _insert(connection: Connection, given: NewInteractions) -> NewInteractions:
    """Stores few interactions, of which some may be stored already."""
    keys = [UUID(bytes=interaction_keys.key_of(one)) for one in given.ids]
    await connection.execute(people.INSERT, sorted(set(given.user_ids)))
    columns = (_values(name, given.fields[name]) for name in _FIELDS)
    rows = await connection.fetch(_ALL_AT_ONCE, keys, given.ids, given.user_ids, *columns)
    new = {row[0] for row in rows}
    return given.at([place for place, one in enumerate(given.ids) if one in new])


def _values(name: str, column: NDArray[Any]) -> list[object]:
    """Returns the values of a column of fields as the driver takes them."""
    return [
        None if is_unknown else to_instant(value) if name in INSTANTS else value
        for value, is_unknown in zip(column.tolist(), are_unknown(column), strict=True)
    ]


async def _copy_all(connection: Connection, given: NewInteractions) -> NewInteractions:
    """Stores interactions of which none is stored yet, or raises UniqueViolationError."""
    user_keys = await _user_keys(connection, given)
    await interaction_keys.add_all(connection, given)
    await turn()
    await _copy(connection, given, user_keys)
    return given


async def _copy_new(connection: Connection, given: NewInteractions) -> NewInteractions:
    """Stores those interactions that are not stored yet."""
    user_keys = await _user_keys(connection, given)
    new = await interaction_keys.add_new(connection, given)
    await turn()
    if new:
        await _copy(connection, new, user_keys)
    return new


async def _user_keys(connection: Connection, given: NewInteractions) -> dict[str, int]:
    # Whoever deletes a person waits for it: a key that is read now stays valid.
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", INSERT_LOCK)
    await turn()
    keys = await people.insert_missing(connection, set(given.user_ids))
    await turn()
    return keys


async def _copy(
    connection: Connection, given: NewInteractions, user_keys: Mapping[str, int]
) -> None:
    given = await _with_profiles(connection, given)
    keys = np.array([user_keys[one] for one in given.user_ids], dtype=np.int64)

    async def rows() -> AsyncIterator[bytes]:
        yield interaction_rows.HEADER
        for start in range(0, len(given), SLICE_ROWS):
            await turn()
            places = range(start, min(start + SLICE_ROWS, len(given)))
            yield interaction_rows.encode(given.at(places), keys[places.start : places.stop])
        yield interaction_rows.TRAILER

    await connection.copy_to_table(
        "interactions", source=rows(), columns=interaction_rows.COLUMNS, format="binary"
    )


async def _with_profiles(connection: Connection, given: NewInteractions) -> NewInteractions:
    """Returns interactions with stored scores where they have none themselves."""
    without = np.flatnonzero(np.isnan(given.fields[TRAITS[0]])).tolist()
    if not without:
        return given
    profiles = await people.profiles(connection, {given.user_ids[place] for place in without})
    fields = given.fields.copy()
    for place in without:
        if traits := profiles.get(given.user_ids[place]):
            fields[list(TRAITS)][place] = traits
    return replace(given, fields=fields)


def _week(instant: datetime) -> datetime:
    day = instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


async def ensure_partition(connection: Connection, instant: datetime) -> None:
    """Makes the partition of an instant's week, if there is none."""
    await connection.execute("SELECT ensure_interactions_partition($1)", instant)


async def maintain(pool: Pool, now: datetime, retention: timedelta) -> list[str]:
    """Makes the partitions of the next `PARTITIONS_AHEAD` weeks and drops those past retention.

    One replica at a time does it; the others return at once.

    Args:
        pool: the database.
        now: aware.
        retention: the age at which interactions are dropped.

    Returns:
        Names of the partitions dropped.
    """
    async with pool.acquire() as connection:
        if not await try_lock(connection, MAINTENANCE_LOCK):
            return []
        for week in range(PARTITIONS_AHEAD + 1):
            await ensure_partition(connection, now + timedelta(weeks=week))
        return await _drop_expired(connection, now - retention)


async def _drop_expired(connection: Connection, before: datetime) -> list[str]:
    partitions = await connection.fetch(
        """
        SELECT name, inhdetachpending, to_date(right(name, 7), 'IYYY"w"IW') AS monday, inhrelid
        FROM (SELECT relname::text AS name, oid FROM pg_class
              WHERE relname ~ '^interactions_[0-9]{4}w[0-9]{2}$' AND relkind = 'r') AS named
        LEFT JOIN pg_inherits ON inhrelid = oid
        ORDER BY name
        """
    )
    dropped = []
    for partition in partitions:
        ends = datetime.combine(partition["monday"], datetime.min.time(), UTC) + timedelta(weeks=1)
        if ends > before:
            continue
        name = partition["name"]
        # A crash between the two steps leaves a detached table, which the next round finds.
        if partition["inhrelid"] is not None:
            how = "FINALIZE" if partition["inhdetachpending"] else "CONCURRENTLY"
            await connection.execute(f"ALTER TABLE interactions DETACH PARTITION {name} {how}")
        await connection.execute(f"DROP TABLE {name}")
        dropped.append(name)
    await interaction_keys.delete_expired(connection, before)
    return dropped
