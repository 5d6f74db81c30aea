"""Personality profiles: the stored ones, and a cache for the hot path."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping

from cachetools import LRUCache

from recparams_server.contract.vocabulary import Traits
from recparams_server.store import people
from recparams_server.store.database import Pool

PROFILES_CHANNEL = "recparams_profiles"
EVERYBODY = "*"
MOST_NAMED = 50

_PUT = """
WITH input AS (
    SELECT * FROM unnest($1::text[], $2::real[], $3::real[], $4::real[], $5::real[], $6::real[])
        AS input (user_id, openness, conscientiousness, extraversion, agreeableness, neuroticism)
), stored AS (
    INSERT INTO personality_profiles AS p
    SELECT user_key, openness, conscientiousness, extraversion, agreeableness, neuroticism, now()
    FROM input JOIN users USING (user_id) ORDER BY user_key
    ON CONFLICT (user_key) DO UPDATE SET
        openness = excluded.openness,
        conscientiousness = excluded.conscientiousness,
        extraversion = excluded.extraversion,
        agreeableness = excluded.agreeableness,
        neuroticism = excluded.neuroticism,
        updated_at = excluded.updated_at
    RETURNING p.*
)
UPDATE interactions AS i SET
    openness = s.openness,
    conscientiousness = s.conscientiousness,
    extraversion = s.extraversion,
    agreeableness = s.agreeableness,
    neuroticism = s.neuroticism
FROM stored AS s
WHERE i.user_key = s.user_key AND i.openness IS NULL
"""


async def put(pool: Pool, profiles: Mapping[str, Traits]) -> None:
    """Stores profiles, all or none, and fills them in where interactions have none.

    Args:
        pool: the database.
        profiles: the five scores, 0 to 100, by user id.
    """
    users = sorted(profiles)
    columns = zip(*(profiles[user] for user in users), strict=True)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(people.INSERT, users)
        await connection.execute(_PUT, users, *(list(column) for column in columns))
        changed = users if len(users) <= MOST_NAMED else [EVERYBODY]
        await connection.executemany(
            "SELECT pg_notify($1, $2)", [(PROFILES_CHANNEL, user) for user in changed]
        )


async def fetch(pool: Pool, user_ids: Iterable[str], timeout: float) -> dict[str, Traits]:
    """Returns the stored profiles of these people, by user id.

    Raises TimeoutError after `timeout` seconds, or twice as many if the connection hangs.
    """
    # The pool's timeout covers giving the connection back, which waits until a query that was
    # given up is known to be cancelled.
    async with asyncio.timeout(timeout), pool.acquire(timeout=timeout) as connection:
        return await people.profiles(connection, user_ids)


class ProfileCache:
    """The stored profiles of recent people, those without one included.

    Replicas tell each other of changes over `PROFILES_CHANNEL`; the time limit covers the rest.
    Entries out of date are kept for when the database cannot be asked.

    Args:
        size: most entries.
        seconds: the age at which an entry is out of date.

    Attributes:
        changes: number of calls of `forget`. A profile read before the last one may be out of date
            and must not be put.
        hits, misses: number of look-ups that found an entry up to date, and of others.
    """

    def __init__(self, size: int, seconds: float) -> None:
        self._known: LRUCache[str, tuple[Traits | None, float]] = LRUCache(size)
        self._seconds = seconds
        self._doubted_at = -math.inf
        self.changes = self.hits = self.misses = 0

    def get(self, user_id: str) -> tuple[bool, Traits | None]:
        """Returns (True if the entry is up to date, the profile or None)."""
        traits, read_at = self._known.get(user_id, (None, -math.inf))
        up_to_date = read_at > max(self._doubted_at, time.monotonic() - self._seconds)
        self.hits += up_to_date
        self.misses += not up_to_date
        return up_to_date, traits

    def put(self, user_id: str, traits: Traits | None) -> None:
        """Keeps a profile, or None for a person without one."""
        self._known[user_id] = traits, time.monotonic()

    def forget(self, user_id: str) -> None:
        """Drops the entry of a person; for `EVERYBODY`, marks all as out of date."""
        self.changes += 1
        if user_id == EVERYBODY:
            self._doubted_at = time.monotonic()
        else:
            self._known.pop(user_id, None)
