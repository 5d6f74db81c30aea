"""The state of the service as a whole, by queries that stay cheap."""

from typing import Any

from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.store.database import Connection
from recparams_server.store.tasks import ENDED_ON_MAIN_LINE, TASK

_WAITING = f"""
SELECT CASE
    WHEN training IS NULL THEN newest
    WHEN training ? 'interactions_through' THEN
        greatest(0, newest - (training->>'interactions_through')::bigint)
        + (training->>'interactions_waiting')::bigint
END
FROM (SELECT coalesce(max(id), 0) AS newest FROM interactions) AS ids
LEFT JOIN (
    SELECT metadata->'training' AS training FROM system_tasks
    WHERE {ENDED_ON_MAIN_LINE} ORDER BY id DESC LIMIT 1
) AS last ON true
"""  # noqa: S608 - constant text


async def active_model(connection: Connection) -> Any:
    """Returns version (null for the rules), activated_at and created_at of what is active, or None.

    None is for a database in which nothing was activated.
    """
    return await connection.fetchrow(
        """
        SELECT a.version, a.activated_at, m.created_at
        FROM model_activations AS a LEFT JOIN model_versions AS m USING (version)
        WHERE a.id <= $1 ORDER BY a.id DESC LIMIT 1
        """,
        LARGEST_NUMBER,
    )


async def last_run(connection: Connection) -> Any:
    """Returns the newest run in short, or None.

    Its columns are id, status, outcome, executed_at, finished_at, seconds, model_version and
    outcome_reason. None is for a database without runs.
    """
    return await connection.fetchrow(
        """
        SELECT id, status, outcome, executed_at, finished_at,
            extract(epoch FROM coalesce(finished_at, now()) - executed_at)::float8 AS seconds,
            (metadata->'training'->>'model_version')::bigint AS model_version,
            coalesce(metadata->'training'->>'outcome_reason', '') AS outcome_reason
        FROM system_tasks WHERE task_name = $1 ORDER BY id DESC LIMIT 1
        """,
        TASK,
    )


async def interactions_waiting(connection: Connection) -> int | None:
    """Returns the estimated number of interactions that no run has trained.

    It is the number that the last run left and the ids drawn since; None if that run left no
    number.
    """
    waiting: int | None = await connection.fetchval(_WAITING)
    return waiting
