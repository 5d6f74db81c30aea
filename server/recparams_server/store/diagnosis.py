"""What a diagnosis asks the database, by queries that stay cheap however much is stored."""

import json
from datetime import UTC, datetime
from typing import Any

from recparams_rl.policy import EXPLORATION, LEARNED, RULE_BASED
from recparams_server.contract.vocabulary import SOURCE_NUMBERS
from recparams_server.store.database import Connection
from recparams_server.store.tasks import TASK

NEWEST = 100_000
"""Interactions that are looked at: those with the newest ids."""
_LAST_RUN = """
SELECT id, status, outcome, error, finished_at, (metadata->'training')::text AS result,
    extract(epoch FROM now() - coalesce(finished_at, executed_at))::float8 AS seconds_ago
FROM system_tasks WHERE task_name = $1 ORDER BY id DESC LIMIT 1
"""


async def clock(connection: Connection) -> datetime:
    """Returns the time of the database, aware."""
    found: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return found.astimezone(UTC)


async def postgres(connection: Connection) -> Any:
    """Returns version (a number such as 160002), name, read_only, connections and their most."""
    return await connection.fetchrow(
        """
        SELECT current_setting('server_version_num')::int AS version,
            split_part(current_setting('server_version'), ' ', 1) AS name,
            current_setting('transaction_read_only') = 'on' AS read_only,
            (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
                AS connections,
            current_setting('max_connections')::int AS most_connections
        """
    )


async def volume(connection: Connection) -> Any:
    """Returns bytes of the database, number of partitions, and the first day of the oldest."""
    return await connection.fetchrow(
        """
        SELECT pg_database_size(current_database()) AS bytes, count(*) AS partitions,
            min(to_date(right(relname, 7), 'IYYY"w"IW')) AS oldest,
            sum(greatest(reltuples, 0))::bigint AS rows
        FROM pg_class WHERE relname ~ '^interactions_[0-9]{4}w[0-9]{2}$' AND relkind = 'r'
        """
    )


async def newest_interactions(connection: Connection) -> Any:
    """Returns counts of the newest interactions, `NEWEST` at most.

    Its columns are interactions, people, recorded_at (of the newest), without_token,
    without_profile, without_reaction (nothing but having been shown), random (propensity below 1,
    or made by exploration), by_version (made by a version and not at random), and by_rules and
    learned of those.
    """
    return await connection.fetchrow(
        """
        SELECT count(*) AS interactions, count(DISTINCT user_key) AS people,
            max(recorded_at) AS recorded_at,
            count(*) FILTER (WHERE source IS NULL) AS without_token,
            count(*) FILTER (WHERE openness IS NULL) AS without_profile,
            count(*) FILTER (
                WHERE reactions & 31 = 0 AND coalesce(completion_rate, 0) = 0
                    AND coalesce(mood_change, 0) = 0
            ) AS without_reaction,
            count(*) FILTER (WHERE propensity < 1 OR source = $4) AS random,
            count(*) FILTER (WHERE model_version > 0 AND source <> $4) AS by_version,
            count(*) FILTER (WHERE model_version > 0 AND source = $3) AS by_rules,
            count(*) FILTER (WHERE model_version > 0 AND source = $2) AS learned
        FROM interactions WHERE id > (SELECT coalesce(max(id), 0) FROM interactions) - $1
        """,
        NEWEST,
        *(SOURCE_NUMBERS[source] for source in (LEARNED, RULE_BASED, EXPLORATION)),
    )


async def last_run(connection: Connection) -> tuple[Any, dict[str, Any]] | None:
    """Returns the newest training run and its results, which are empty before it has any."""
    row = await connection.fetchrow(_LAST_RUN, TASK)
    return None if row is None else (row, json.loads(row["result"] or "{}"))


async def people_by_arm(connection: Connection, activation_id: int) -> dict[int, int]:
    """Returns the number of people with an interaction under an activation, by arm number."""
    rows = await connection.fetch(
        """
        SELECT policy_arm, count(DISTINCT user_key) AS people FROM interactions
        WHERE activation_id = $1 GROUP BY policy_arm
        """,
        activation_id,
    )
    return {row["policy_arm"]: row["people"] for row in rows}
