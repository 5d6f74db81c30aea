"""The queries of a training run: exactly-once reading and one commit."""

import json
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.store.columns import INTERACTIONS
from server.store.database import Connection, Pool
from server.store.locks import while_none_inserts
from server.store.tasks import TASK

# No upper bound in time: an interaction after the window must hold back what arrived after it.
_DUE = {
    True: "interactions AS i WHERE i.id <= $1 AND i.occurred_at >= $2",
    False: """interactions AS i JOIN users AS u USING (user_key)
        WHERE i.id > u.trained_through AND i.id <= $1 AND i.occurred_at >= $2""",
}


def query(rebuild: bool, select: str = INTERACTIONS.select_list) -> str:
    """Returns the SQL by which a run reads: $1 is the highest id, $2 the start of the window.

    Args:
        rebuild: True to read interactions too that were trained before.
        select: the select list, in which `i` is an interaction.
    """
    return f"SELECT {select} FROM {_DUE[rebuild]}"  # noqa: S608 - constant text


async def begin(connection: Connection, run_id: int) -> dict[str, Any] | None:
    """Marks a pending run as running and returns its request, or None if it is not pending."""
    request = await connection.fetchval(
        """
        UPDATE system_tasks SET status = 'running', started_at = now()
        WHERE id = $1 AND status = 'pending' RETURNING (metadata->'request')::text
        """,
        run_id,
    )
    return None if request is None else json.loads(request)


async def report(connection: Connection, run_id: int, stage: str, progress: float) -> bool:
    """Stores the stage and progress (0 to 1) of a run. Returns True if it is to go on."""
    return bool(
        await connection.fetchval(
            """
            UPDATE system_tasks SET stage = $2, progress = $3
            WHERE id = $1 AND status = 'running' RETURNING NOT cancel_requested
            """,
            run_id,
            stage,
            progress,
        )
    )


async def snapshot(connection: Connection) -> int:
    """Returns an id up to which every interaction is committed, and below which none can appear.

    Raises as `while_none_inserts`.
    """

    async def last_id() -> int:
        return int(await connection.fetchval("SELECT coalesce(max(id), 0) FROM interactions"))

    return await while_none_inserts(connection, last_id)


async def export_snapshot(connection: Connection) -> str:
    """Begins a transaction and returns the name of its snapshot, for `import_snapshot`.

    The name is valid until the transaction ends.
    """
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    return str(await connection.fetchval("SELECT pg_export_snapshot()"))


async def import_snapshot(connection: Connection, snapshot: str) -> None:
    """Begins a transaction that sees the snapshot of a name that `export_snapshot` gave."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")


async def fill_in_profiles(connection: Connection) -> None:
    """Fills stored profiles in where interactions have none.

    An interaction and its person's profile that were stored at the same time did not see each
    other. Locks profiles in the order in which `profiles.put` does.
    """
    await connection.execute(
        """
        WITH stored AS (
            SELECT * FROM personality_profiles
            WHERE user_key IN (SELECT user_key FROM interactions WHERE openness IS NULL)
            ORDER BY user_key FOR SHARE
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
    )


async def base_version(connection: Connection | Pool) -> int | None:
    """Returns the version that an incremental run goes on from, or None.

    It is the newest trained one of the main line, served or not, since the watermarks belong to
    it. Before any training it is the active version if that was imported.
    """
    version: int | None = await connection.fetchval(
        """
        SELECT coalesce(
            (SELECT max(version) FROM model_versions WHERE origin = 'trained' AND main_line),
            (
                SELECT version FROM model_versions WHERE origin = 'imported' AND version = (
                    SELECT version FROM model_activations ORDER BY id DESC LIMIT 1
                )
            )
        )
        """
    )
    return version


async def expected_rows(
    connection: Connection, rebuild: bool, through: int, window_start: datetime
) -> int:
    """Returns the planner's estimate of the rows that a run reads, for showing progress."""
    plan = await connection.fetchval(
        f"EXPLAIN (FORMAT JSON) {query(rebuild)}", through, window_start
    )
    return int(json.loads(plan)[0]["Plan"]["Plan Rows"])


async def still_wanted(connection: Connection, run_id: int) -> bool:
    """Returns True if a run may commit. Locks its row until the transaction ends."""
    row = await connection.fetchrow(
        "SELECT status, cancel_requested FROM system_tasks WHERE id = $1 FOR UPDATE", run_id
    )
    return row is not None and row["status"] == "running" and not row["cancel_requested"]


async def set_watermarks(
    connection: Connection, users: NDArray[np.int64], trained_through: NDArray[np.int64]
) -> None:
    """Sets the id up to which each person is trained.

    Args:
        connection: in a transaction.
        users: keys, shape (n,).
        trained_through: interaction ids, shape (n,).
    """
    await connection.execute(
        """
        UPDATE users SET trained_through = w.id
        FROM unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
        WHERE users.user_key = w.user_key
        """,
        users.tolist(),
        trained_through.tolist(),
    )


async def lower_watermarks(
    connection: Connection, users: NDArray[np.int64], trained_through: NDArray[np.int64]
) -> None:
    """Lowers the watermarks of people whose interactions a rebuild left out, for a later run.

    Arguments are those of `set_watermarks`; one that is lower already stays.
    """
    await connection.execute(
        """
        UPDATE users SET trained_through = w.id
        FROM unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
        WHERE users.user_key = w.user_key AND users.trained_through > w.id
        """,
        users.tolist(),
        trained_through.tolist(),
    )


async def complete(connection: Connection, run_id: int, held_back: str, metadata: str) -> None:
    """Ends a run with its results.

    Args:
        connection: in the transaction of the run.
        run_id: its number.
        held_back: why its version is not served: the run is gated then; empty if it is completed.
        metadata: JSON object that is merged into the run's metadata.
    """
    await connection.execute(
        """
        UPDATE system_tasks AS t SET
            status = CASE WHEN $4 = '' THEN 'completed' ELSE 'gated' END, error = $4,
            stage = 'done', progress = 1, finished_at = clock_timestamp(),
            users_processed = (m->'training'->>'users_trained')::bigint,
            records_processed = (m->'training'->>'interactions_trained')::bigint,
            metadata = t.metadata || m
        FROM (SELECT $2::jsonb AS m) AS result
        WHERE id = $1 AND task_name = $3
        """,
        run_id,
        metadata,
        TASK,
        held_back,
    )
