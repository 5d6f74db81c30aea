"""Model versions as they are listed: their rows without the arrays, and what is wrong with them."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from recparams_rl.state import StateSpace
from recparams_server.store import models
from recparams_server.store.database import Connection, Pool
from recparams_server.store.model_errors import ModelError

PIECE_BYTES = 4 << 20
_DESCRIBE = """
SELECT version, created_at, origin, run_id, parent_version, algorithm, space::text,
    hyperparameters::text, metrics::text,
    coalesce(q_table_checksum, learner_checksum) AS checksum, q_table_checksum, learner_checksum,
    coalesce(octet_length(q_table), 0) + coalesce(octet_length(learner), 0)
        + octet_length(policy) AS stored_bytes,
    objectives::text, main_line, halted_at, halted_reason, q_table IS NOT NULL AS has_table,
    learner IS NOT NULL AS has_learner
FROM model_versions
"""


async def describe(connection: Connection | Pool, version: int) -> Any:
    """Returns the row of a version without its arrays, or None."""
    return await connection.fetchrow(_DESCRIBE + "WHERE version = $1", version)


async def page(connection: Connection, below: int | None, size: int) -> list[Any]:
    """Returns the rows of up to `size` versions, newest first, below a version number."""
    return await connection.fetch(
        _DESCRIBE + "WHERE $1::bigint IS NULL OR version < $1 ORDER BY version DESC LIMIT $2",
        below,
        size,
    )


async def pasts(connection: Connection, versions: Sequence[int]) -> dict[int, Any]:
    """Returns what is recorded of versions, by version: outcome (null if none) and was_served."""
    rows = await connection.fetch(
        """
        SELECT version, (
            SELECT outcome FROM system_tasks WHERE id = run_id
        ) AS outcome, EXISTS (
            SELECT FROM model_activations AS a WHERE a.version = m.version
        ) AS was_served
        FROM model_versions AS m WHERE version = ANY($1::bigint[])
        """,
        versions,
    )
    return {row["version"]: row for row in rows}


async def problem(connection: Connection, row: Any) -> str:
    """Returns why the version of a row cannot be served or built on; empty where it can.

    A version of another state space has no problem: it is served where the settings have it.
    """
    try:
        await models.load_policy(connection, row["version"], None)
    except ModelError as failure:
        return str(failure)
    return await learner_problem(connection, row)


async def learner_problem(connection: Connection | Pool, row: Any) -> str:
    """Returns why a run cannot go on from the version of a row; empty where it can."""
    version = row["version"]
    try:
        space = json.loads(row["space"])
        StateSpace.from_dict(space)
    except (KeyError, TypeError, ValueError) as failure:
        return f"model version {version}: bad state space: {failure}"
    for what, is_there, stored in (
        ("table", row["has_table"], row["q_table_checksum"]),
        ("learner", row["has_learner"], row["learner_checksum"]),
    ):
        if is_there and await _checksum(connection, version, what, space) != stored:
            return f"model version {version}: the {what} fails its checksum"
    return ""


async def _checksum(connection: Connection | Pool, version: int, what: str, space: Any) -> str:
    """Returns the checksum of the table or the learner of a version, read piece by piece."""
    found = hashlib.sha256(models.canonical(space).encode())
    start = 1
    while True:
        piece = await connection.fetchval(
            """
            SELECT substring(CASE $2 WHEN 'table' THEN q_table ELSE learner END FROM $3 FOR $4)
            FROM model_versions WHERE version = $1
            """,
            version,
            what,
            start,
            PIECE_BYTES,
        )
        await asyncio.to_thread(found.update, piece or b"")
        if len(piece or b"") < PIECE_BYTES:
            return found.hexdigest()
        start += PIECE_BYTES


async def states_visited(connection: Connection, version: int) -> int:
    """Returns the number of states that a version has visited; 0 where its row does not say."""
    text = await connection.fetchval(
        "SELECT metrics::text FROM model_versions WHERE version = $1", version
    )
    try:
        return int(json.loads(text)["total_states"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


async def least_exploration(connection: Connection) -> float | None:
    """Returns the least exploration rate above 0 of the stored versions; None if none explores."""
    least: float | None = await connection.fetchval(
        """
        SELECT min(epsilon)
        FROM (
            SELECT CASE jsonb_typeof(metrics->'exploration_rate')
                WHEN 'number' THEN (metrics->>'exploration_rate')::float8
            END AS epsilon
            FROM model_versions
        ) AS each
        WHERE epsilon > 0
        """
    )
    return least


async def halt(connection: Connection, version: int, reason: str) -> None:
    """Marks a version as one that the server took back by itself."""
    await connection.execute(
        "UPDATE model_versions SET halted_at = now(), halted_reason = $2 WHERE version = $1",
        version,
        reason,
    )
