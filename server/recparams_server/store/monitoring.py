"""The figures of the database that metrics show, by queries that stay cheap."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from recparams.v1.evaluation_pb2 import LearningGain
from recparams_server.store import learning_gain, system, tasks
from recparams_server.store.database import Connection

RUN_STATUSES = ("pending", "running", "completed", "failed", "cancelled")

OUTCOMES = (
    *("activated", "started", "waiting", "superseded"),
    *("refused", "stored", "no_change"),
)
_LAST_ENDED = f"""
SELECT finished_at, (metadata->'training')::text AS result FROM system_tasks
WHERE {tasks.ENDED_ON_MAIN_LINE} ORDER BY id DESC LIMIT 1
"""  # noqa: S608 - constant text


@dataclass(frozen=True)
class Figures:
    """The figures of one look at the database.

    Attributes:
        runs: training runs of all time by status, every status included.
        outcomes: completed ones by what became of their version, every outcome included.
        refused_in_a_row: newest runs in a row whose version was refused.
        trained_at: end of the last run that had a result; before any, when the first interaction
            was recorded; None before that.
        last_run: results of that run, as its metadata have them; empty before any.
        waiting: estimated number of interactions that no run has trained, or None if unknown.
        gain: what learning is worth; None where nobody could be compared.
        model_created_at: time the served version was made; None for the rules.
    """

    runs: dict[str, int]
    outcomes: dict[str, int]
    refused_in_a_row: int
    trained_at: datetime | None
    last_run: dict[str, Any]
    waiting: int | None
    gain: LearningGain | None
    model_created_at: datetime | None


async def read_figures(connection: Connection, serving_version: int) -> Figures:
    """Returns the figures, after ending runs whose trainer is gone, so that they show."""
    await tasks.fail_dead_runs(connection)
    counts = await connection.fetch(
        "SELECT status, count(*) FROM system_tasks WHERE task_name = $1 GROUP BY status", tasks.TASK
    )
    last = await connection.fetchrow(_LAST_ENDED)
    outcomes = await connection.fetch(
        """
        SELECT outcome, count(*) FROM system_tasks
        WHERE task_name = $1 AND outcome IS NOT NULL GROUP BY outcome
        """,
        tasks.TASK,
    )
    return Figures(
        runs={**dict.fromkeys(RUN_STATUSES, 0), **{row[0]: row[1] for row in counts}},
        outcomes={**dict.fromkeys(OUTCOMES, 0), **{row[0]: row[1] for row in outcomes}},
        refused_in_a_row=await tasks.refused_in_a_row(connection),
        trained_at=await _first_recorded_at(connection) if last is None else last["finished_at"],
        last_run={} if last is None else json.loads(last["result"]),
        waiting=await system.interactions_waiting(connection),
        gain=await learning_gain.newest(connection),
        model_created_at=await connection.fetchval(
            "SELECT created_at FROM model_versions WHERE version = $1", serving_version
        ),
    )


async def _first_recorded_at(connection: Connection) -> Any:
    return await connection.fetchval("SELECT recorded_at FROM interactions ORDER BY id LIMIT 1")
