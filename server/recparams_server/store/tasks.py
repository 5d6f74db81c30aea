"""The run log: rows of system_tasks whose task_name is rl_training."""

import json
from typing import Any

from recparams_server.store.database import Connection, Pool
from recparams_server.store.locks import TRAINER_LOCK

TASK = "rl_training"
PENDING_SECONDS = 60
"""Time for a pending run's trainer to start. One whose server lost the database has none."""
ENDED_ON_MAIN_LINE = """(
    task_name = 'rl_training' AND status = 'completed'
        AND NOT coalesce((metadata->'request'->>'apart')::bool, false)
)"""
"""SQL condition: a run of the main line that ended with a result."""

_SELECT = """
SELECT id, request_id, status, outcome, executed_at, started_at, finished_at, stage, progress,
    users_processed, records_processed, cancel_requested, error, metadata::text
FROM system_tasks WHERE task_name = 'rl_training'
"""


async def fetch(connection: Connection | Pool, run_id: int) -> Any:
    """Returns the row of a run, or None."""
    return await connection.fetchrow(_SELECT + "AND id = $1", run_id)


async def fetch_by_request(connection: Connection | Pool, request_id: str) -> Any:
    """Returns the row of the run that a request started, or None."""
    return await connection.fetchrow(_SELECT + "AND request_id = $1", request_id)


async def page(pool: Pool, below: int | None, size: int) -> list[Any]:
    """Returns the rows of up to `size` runs, newest first, below a run number."""
    return await pool.fetch(
        _SELECT + "AND ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2", below, size
    )


async def live(connection: Connection | Pool) -> Any:
    """Returns the row of the run that is pending or running, or None."""
    return await connection.fetchrow(_SELECT + "AND status IN ('pending', 'running')")


async def create(connection: Connection | Pool, request_id: str, request: dict[str, Any]) -> int:
    """Adds a pending run and returns its number.

    Raises asyncpg.UniqueViolationError while another is pending or running, or if the request_id
    was used before.
    """
    return int(
        await connection.fetchval(
            """
            INSERT INTO system_tasks (task_name, status, request_id, metadata)
            VALUES ($1, 'pending', $2, $3) RETURNING id
            """,
            TASK,
            request_id,
            json.dumps({"request": request}),
        )
    )


_DEAD = f"""
task_name = $1
    AND (status = 'running'
        OR status = 'pending' AND executed_at < now() - interval '{PENDING_SECONDS} seconds')
    AND NOT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid = 0 AND objid = $2
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
"""  # noqa: S608 - constants


_HAS_DEAD = "SELECT EXISTS (SELECT FROM system_tasks WHERE " + _DEAD + ")"  # noqa: S608 - constant

_FAIL_DEAD = (
    "UPDATE system_tasks SET status = 'failed', finished_at = now(), error = $3 WHERE "  # noqa: S608
    + _DEAD
)

_FOUND_DEAD = "the trainer was killed or lost its database; nothing was changed"


async def has_dead_runs(connection: Connection | Pool) -> bool:
    """Returns True if `fail_dead_runs` would mark a run; writes nothing."""
    return bool(await connection.fetchval(_HAS_DEAD, TASK, TRAINER_LOCK))


async def fail_dead_runs(connection: Connection | Pool) -> None:
    """Marks runs as failed whose trainer is gone.

    A trainer holds `TRAINER_LOCK` from before its run is marked running until after it has ended,
    and Postgres releases it when the trainer dies: running without the lock is dead.
    """
    await connection.execute(_FAIL_DEAD, TASK, TRAINER_LOCK, _FOUND_DEAD)


async def end(connection: Connection | Pool, run_id: int, status: str, error: str) -> bool:
    """Ends a run without a result. Returns False if it had ended already.

    A failure takes the place of what `fail_dead_runs` said, which cannot know the reason.
    """
    return bool(
        await connection.fetchval(
            """
            UPDATE system_tasks SET status = $2, error = $3, finished_at = now()
            WHERE id = $1 AND (
                status IN ('pending', 'running')
                OR status = 'failed' AND $2 = 'failed' AND error = $4
            )
            RETURNING true
            """,
            run_id,
            status,
            error,
            _FOUND_DEAD,
        )
    )


async def request_cancel(pool: Pool, run_id: int) -> bool:
    """Asks a run to stop. Returns False if it had ended already."""
    return bool(
        await pool.fetchval(
            """
            UPDATE system_tasks SET cancel_requested = true
            WHERE id = $1 AND status IN ('pending', 'running') RETURNING true
            """,
            run_id,
        )
    )


async def refused_in_a_row(connection: Connection) -> int:
    """Returns how many runs in a row, the newest among them, had their version refused."""
    return int(
        await connection.fetchval(
            """
            SELECT count(*) FROM system_tasks WHERE task_name = $1 AND outcome = 'refused'
                AND id > coalesce((
                    SELECT max(id) FROM system_tasks WHERE task_name = $1
                        AND outcome IN ('activated', 'started', 'waiting', 'superseded')
                ), 0)
            """,
            TASK,
        )
    )


async def waiting_version(connection: Connection) -> Any:
    """Returns run id and version of the run whose version waits for its turn, or None."""
    return await connection.fetchrow(
        """
        SELECT id, (metadata->'training'->>'model_version')::bigint AS version
        FROM system_tasks WHERE task_name = $1 AND outcome = 'waiting'
        """,
        TASK,
    )


async def end_waiting(connection: Connection, run_id: int, outcome: str, reason: str) -> None:
    """Notes what became of the version of a run after it had waited."""
    await connection.execute(
        """
        UPDATE system_tasks SET outcome = $2, metadata =
            jsonb_set(metadata, '{training,outcome_reason}', to_jsonb($3::text))
        WHERE id = $1
        """,
        run_id,
        outcome,
        reason,
    )


async def supersede_waiting(connection: Connection) -> None:
    """Notes that the version that waits for its turn, if any, does so no longer."""
    await connection.execute(
        """
        UPDATE system_tasks SET outcome = 'superseded'
        WHERE task_name = $1 AND outcome = 'waiting'
        """,
        TASK,
    )


async def note(connection: Connection, task: str, request_id: str, metadata: str) -> None:
    """Adds a finished entry of another kind of task, unless its request_id is there already."""
    await connection.execute(
        """
        INSERT INTO system_tasks (
            task_name, status, request_id, stage, progress, finished_at, metadata
        ) VALUES ($1, 'completed', $2, 'done', 1, now(), $3) ON CONFLICT DO NOTHING
        """,
        task,
        request_id,
        metadata,
    )


async def count(connection: Connection, task: str) -> int:
    """Returns the number of entries of a kind of task."""
    return int(
        await connection.fetchval("SELECT count(*) FROM system_tasks WHERE task_name = $1", task)
    )
