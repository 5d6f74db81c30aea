"""What the database says of the service as a whole, by queries that stay cheap."""

from typing import Any

from server.store.database import Connection
from server.store.tasks import TASK


async def active_model(connection: Connection) -> Any:
    """What is to be served: version (null for the rules), activated_at, created_at; or None."""
    return await connection.fetchrow(
        """
        SELECT a.version, a.activated_at, m.created_at
        FROM model_activations AS a LEFT JOIN model_versions AS m USING (version)
        ORDER BY a.id DESC LIMIT 1
        """
    )


async def last_run(connection: Connection) -> Any:
    """The newest run: id, status, executed_at, finished_at, seconds, model_version; or None."""
    return await connection.fetchrow(
        """
        SELECT id, status, executed_at, finished_at,
            extract(epoch FROM coalesce(finished_at, now()) - executed_at)::float8 AS seconds,
            (metadata->'training'->>'model_version')::bigint AS model_version
        FROM system_tasks WHERE task_name = $1 ORDER BY id DESC LIMIT 1
        """,
        TASK,
    )


async def interactions_waiting(connection: Connection) -> int | None:
    """About how many interactions no run has trained; None where the last run did not say.

    What it left, and how far ids have come since.
    """
    waiting: int | None = await connection.fetchval(
        """
        SELECT CASE
            WHEN training IS NULL THEN newest
            WHEN training ? 'interactions_through' THEN
                greatest(0, newest - (training->>'interactions_through')::bigint)
                + (training->>'interactions_waiting')::bigint
        END
        FROM (SELECT coalesce(max(id), 0) AS newest FROM interactions) AS ids
        LEFT JOIN (
            SELECT metadata->'training' AS training FROM system_tasks
            WHERE task_name = $1 AND status IN ('completed', 'gated')
                AND NOT coalesce((metadata->'request'->>'apart')::bool, false)
            ORDER BY id DESC LIMIT 1
        ) AS last ON true
        """,
        TASK,
    )
    return waiting
