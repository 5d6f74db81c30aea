"""Interactions: idempotent inserts, and the upkeep of weekly partitions."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter

import asyncpg

from recparams_server.contract.interaction import NewInteraction
from recparams_server.store import interaction_rows, people
from recparams_server.store.database import Connection, Pool
from recparams_server.store.locks import INSERT_LOCK, MAINTENANCE_LOCK, try_lock
from recparams_server.turns import turn

PARTITIONS_AHEAD = 4
FEW = 50
"""Interactions that one statement stores; more are worth the round trips of COPY."""
SLICE_ROWS = 100
"""Rows that are encoded at a time: all of a full message would hold others up."""

_COLUMNS = (
    ("interaction_id", "text"),
    ("user_id", "text"),
    ("occurred_at", "timestamptz"),
    ("reactions", "smallint"),
    ("completion_rate", "real"),
    ("mood_change", "real"),
    ("content_type", "smallint"),
    ("mood", "smallint"),
    ("time_of_day", "smallint"),
    ("action", "smallint"),
    ("openness", "real"),
    ("conscientiousness", "real"),
    ("extraversion", "real"),
    ("agreeableness", "real"),
    ("neuroticism", "real"),
    ("propensity", "real"),
    ("model_version", "bigint"),
    ("policy_arm", "smallint"),
    ("source", "smallint"),
    ("decision_id", "bigint"),
    ("decided_at", "timestamptz"),
    ("activation_id", "bigint"),
)
_TRAITS = [name for name, _ in _COLUMNS[10:15]]
_OTHERS = [name for name, _ in _COLUMNS if name != "user_id" and name not in _TRAITS]

# Rows arrive as one array a column.
_INPUT = f"""
SELECT * FROM unnest({", ".join(f"${i}::{kind}[]" for i, (_, kind) in enumerate(_COLUMNS, 1))})
    WITH ORDINALITY AS input ({", ".join(name for name, _ in _COLUMNS)}, position)
"""  # noqa: S608 - only the constant column names above are put in

_INSERT_KEYS = """
INSERT INTO interaction_keys (interaction_id, occurred_at)
SELECT interaction_id, occurred_at FROM input ORDER BY interaction_id
ON CONFLICT DO NOTHING
RETURNING interaction_id
"""

# The stored profile fills in for rows without traits.
_INSERT_ROWS = f"""
INSERT INTO interactions (user_key, {", ".join([*_OTHERS, *_TRAITS])})
SELECT users.user_key, {", ".join(f"input.{name}" for name in _OTHERS)},
    {", ".join(f"coalesce(input.{name}, profile.{name})" for name in _TRAITS)}
FROM fresh AS input
JOIN users USING (user_id)
LEFT JOIN personality_profiles AS profile ON profile.user_key = users.user_key
ORDER BY position
RETURNING interaction_id
"""  # noqa: S608 - the same

_ALL_AT_ONCE = f"""
WITH input AS ({_INPUT}), keys AS ({_INSERT_KEYS}),
    fresh AS (SELECT * FROM input JOIN keys USING (interaction_id))
{_INSERT_ROWS}
"""  # noqa: S608 - the same
_KEYS = f"""
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::timestamptz[]) AS input (interaction_id, occurred_at)
), keys AS ({_INSERT_KEYS})
SELECT array_agg(interaction_id) FROM keys
"""  # noqa: S608 - the same


async def record(pool: Pool, interactions: Sequence[NewInteraction]) -> list[NewInteraction]:
    """Stores interactions, all or none, and returns those that were new, after the commit.

    Args:
        pool: the database.
        interactions: with distinct interaction_ids.
    """
    try:
        new = await _insert(pool, interactions)
    except asyncpg.CheckViolationError as failure:
        if "no partition" not in str(failure):
            raise
        await _ensure_partitions(pool, interactions)
        new = await _insert(pool, interactions)
    return [interaction for interaction in interactions if interaction.interaction_id in new]


async def _ensure_partitions(pool: Pool, interactions: Sequence[NewInteraction]) -> None:
    weeks = {_week(interaction.occurred_at) for interaction in interactions}
    async with pool.acquire() as connection:
        for week in sorted(weeks):
            await ensure_partition(connection, week)


async def _insert(pool: Pool, interactions: Sequence[NewInteraction]) -> set[str]:
    """Returns the interaction_ids of those that were new."""
    async with pool.acquire() as connection, connection.transaction():
        if len(interactions) > FEW:
            return await _copy(connection, interactions)
        await connection.execute(people.INSERT, sorted({one.user_id for one in interactions}))
        return {row[0] for row in await connection.fetch(_ALL_AT_ONCE, *_columns(interactions))}


async def _copy(connection: Connection, interactions: Sequence[NewInteraction]) -> set[str]:
    """Does the same in a transaction, with several round trips and less work for each row."""
    # Whoever deletes a person waits for it: a key that is read now stays valid.
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", INSERT_LOCK)
    await turn()
    user_keys = await people.insert_missing(connection, {one.user_id for one in interactions})
    await turn()
    # The keys of all before any row: messages that share keys then lock them in one order.
    # One row with all of them takes less to decode than one for each.
    keys = await connection.fetchval(
        _KEYS,
        [one.interaction_id for one in interactions],
        [one.occurred_at for one in interactions],
    )
    await turn()
    new = set(keys or ())
    fresh = [one for one in interactions if one.interaction_id in new]
    if not fresh:
        return new
    unknown = {one.user_id for one in fresh if one.choice.traits is None}
    profiles = await people.profiles(connection, unknown) if unknown else {}

    async def rows() -> AsyncIterator[bytes]:
        before = interaction_rows.HEADER
        for start in range(0, len(fresh), SLICE_ROWS):
            await turn()
            part = fresh[start : start + SLICE_ROWS]
            after = interaction_rows.TRAILER if start + SLICE_ROWS >= len(fresh) else b""
            yield before + interaction_rows.encode(part, user_keys, profiles) + after
            before = b""

    await connection.copy_to_table(
        "interactions", source=rows(), columns=interaction_rows.COLUMNS, format="binary"
    )
    return new


_reaction = attrgetter(*(name for name, _ in _COLUMNS[:6]))
_context = attrgetter(*(name for name, _ in _COLUMNS[6:10]))
_decision = attrgetter(*(name for name, _ in _COLUMNS[15:]))


def _columns(interactions: Sequence[NewInteraction]) -> list[list[object]]:
    """Returns the values of each of `_COLUMNS`."""
    rows = [_values(interaction) for interaction in interactions]
    return [list(column) for column in zip(*rows, strict=True)]


def _values(interaction: NewInteraction) -> tuple[object, ...]:
    choice = interaction.choice
    traits = choice.traits or (None,) * 5
    return (*_reaction(interaction), *_context(choice), *traits, *_decision(choice))


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


# An id without its key could be recorded, and trained, again: keys outlive their week's partition.
_DELETE_KEYS = """
DELETE FROM interaction_keys
WHERE occurred_at < $1
    AND to_regclass('interactions_' || to_char(occurred_at AT TIME ZONE 'UTC', 'IYYY"w"IW')) IS NULL
"""


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
    await connection.execute(_DELETE_KEYS, before)
    return dropped
