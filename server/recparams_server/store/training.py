"""The queries of a training run: exactly-once reading and one commit."""

import json
from array import array
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.transitions import Due
from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.store.activations import MODEL_CHANNEL
from recparams_server.store.columns import INTERACTIONS
from recparams_server.store.database import Connection, Pool
from recparams_server.store.locks import while_none_inserts
from recparams_server.store.tasks import ENDED_ON_MAIN_LINE, TASK

# Up to where a run read all that was due: what is due below is of people who have some waiting.
_READ_THROUGH = f"""(
    SELECT coalesce(max((metadata->'training'->>'interactions_read_through')::bigint), 0)
    FROM system_tasks WHERE {ENDED_ON_MAIN_LINE}
)"""  # noqa: S608 - constant text

# No upper bound in time: an interaction after the window must hold back what arrived after it.
_READ = {
    True: "(SELECT * FROM interactions AS one WHERE one.id <= $1)",
    False: f"""(
        SELECT one.* FROM interactions AS one JOIN users AS u USING (user_key)
        WHERE one.id <= $1 AND one.id > u.trained_through AND one.id > {_READ_THROUGH}
        UNION ALL
        SELECT one.* FROM users AS u JOIN interactions AS one USING (user_key)
        WHERE u.has_waiting AND one.id <= $1 AND one.id > u.trained_through
            AND one.id <= {_READ_THROUGH}
        UNION ALL
        SELECT one.*
        FROM interactions_left_out AS l
        JOIN users AS u USING (user_key)
        JOIN interactions AS one USING (id, occurred_at)
        WHERE l.id <= u.trained_through
    )""",  # noqa: S608 - constant text
}

EVER = datetime.fromtimestamp(0, UTC)
"""Start of a window that leaves nothing out: no interaction is older."""


def reads_all_due(window_start: datetime, rebuild: bool) -> bool:
    """Returns True if a run of a window reads all that is due, and nothing else."""
    return window_start <= EVER and not rebuild


def query(rebuild: bool, select: str = INTERACTIONS.select_list) -> str:
    """Returns SQL for what a run reads: $1 is the highest id, $2 the start of the window.

    A rebuild reads all interactions of the window. An incremental run reads what is due: all that
    no run has trained, however long ago it happened.

    Args:
        rebuild: read what was trained before as well.
        select: the select list, `i` being an interaction.
    """
    return f"SELECT {select} FROM {_READ[rebuild]} AS i WHERE i.occurred_at >= $2"  # noqa: S608


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
    it. Before any training it is the active version if that was imported. A version that decision
    tokens have no room for is passed over: what is trained on it would never be the newest.
    """
    version: int | None = await connection.fetchval(
        """
        SELECT coalesce(
            (
                SELECT max(version) FROM model_versions
                WHERE origin = 'trained' AND main_line AND version <= $1
            ),
            (
                SELECT version FROM model_versions WHERE origin = 'imported' AND version = (
                    SELECT version FROM model_activations WHERE id <= $1 ORDER BY id DESC LIMIT 1
                )
            )
        )
        """,
        LARGEST_NUMBER,
    )
    return version


async def exploration_rate(connection: Connection) -> float | None:
    """Returns the exploration rate after all that the main line was trained on, 0 to 1.

    None before any training. It holds for whatever is served: what was learned since counts too.
    """
    rate: float | None = await connection.fetchval(
        """
        SELECT CASE jsonb_typeof(metrics->'exploration_rate')
            WHEN 'number' THEN least(1, greatest(0, (metrics->>'exploration_rate')::float8))
        END
        FROM model_versions
        WHERE origin = 'trained' AND main_line ORDER BY version DESC LIMIT 1
        """
    )
    return rate


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


async def settle(connection: Connection, due: Due, window_start: datetime, *, rebuild: bool) -> int:
    """Notes what a run trained, so that all else stays due, within the caller's transaction.

    Args:
        connection: in a transaction.
        due: what the run trained and what it left.
        window_start: the window that it read; `EVER` for all that was due.
        rebuild: True if it read what was trained before as well.

    Returns:
        The number of interactions that wait for a later run.
    """
    trained = _numbers(due.users), _numbers(due.trained_through)
    waiting = _numbers(due.waiting_users), _numbers(due.first_waiting - 1)
    if window_start > EVER:
        await connection.execute(_LEAVE_OUT, *trained, window_start)
    await connection.execute(_NO_LONGER_LEFT_OUT, *trained, window_start)
    await connection.execute(_SET_WATERMARKS, *trained, rebuild, window_start > EVER)
    await connection.execute(_SET_WAITING, *waiting, rebuild)
    if rebuild:
        await connection.execute(_DUE_ANYWAY)
    if reads_all_due(window_start, rebuild):
        return due.waiting
    return int(await connection.fetchval(query(False, "count(*)"), _ANY_ID, EVER))


def _numbers(column: NDArray[np.int64]) -> "array[int]":
    """Returns a column as the driver takes it, in a fifth of the memory of a list."""
    return array("q", column.tobytes())


_ANY_ID = (1 << 63) - 1

_LEAVE_OUT = """
INSERT INTO interactions_left_out (id, occurred_at, user_key)
SELECT i.id, i.occurred_at, u.user_key
FROM unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
JOIN users AS u USING (user_key)
JOIN interactions AS i USING (user_key)
WHERE i.id > u.trained_through AND i.id <= w.id AND i.occurred_at < $3
"""

_NO_LONGER_LEFT_OUT = """
DELETE FROM interactions_left_out AS l
USING unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
WHERE l.user_key = w.user_key AND l.id <= w.id AND l.occurred_at >= $3
"""

# A rebuild begins anew, and may stop before what was trained earlier. Who reads a part of what is
# due cannot say that nothing waits.
_SET_WATERMARKS = """
UPDATE users SET
    trained_through = CASE WHEN $3 THEN w.id ELSE greatest(trained_through, w.id) END,
    has_waiting = has_waiting AND ($3 OR $4) OR ($3 AND w.id < trained_through)
FROM unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
WHERE users.user_key = w.user_key
"""

# A rebuild takes back people of whom it left something that was trained before.
_SET_WAITING = """
UPDATE users SET
    trained_through = CASE WHEN $3 THEN least(trained_through, w.id) ELSE trained_through END,
    has_waiting = true
FROM unnest($1::bigint[], $2::bigint[]) AS w (user_key, id)
WHERE users.user_key = w.user_key
"""

_DUE_ANYWAY = """
DELETE FROM interactions_left_out AS l USING users AS u
WHERE l.user_key = u.user_key AND l.id > u.trained_through
"""


async def complete(connection: Connection, run_id: int, outcome: str, metadata: str) -> None:
    """Ends a run with its results.

    Args:
        connection: in the transaction of the run.
        run_id: its number.
        outcome: what became of its version.
        metadata: JSON object that is merged into the run's metadata.
    """
    # Exploration follows what was trained, also where nothing else is served: replicas look at it.
    await connection.execute("SELECT pg_notify($1, '')", MODEL_CHANNEL)
    await connection.execute(
        """
        UPDATE system_tasks AS t SET
            status = 'completed', outcome = $4,
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
        outcome,
    )
