"""GetSystemHealth over a real channel, and how the command line shows it."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import system_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams_server.app import App
from recparams_server.settings import Settings
from tests.faults import SMALL, eventually, trigger
from tests.support import Client, connect, in_process, logged, record, train, wait_ended
from tests.test_cli import run


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url, tmp_path, schedule="0 1 * * 1", schedule_grace_seconds=1, **SMALL
    )


async def health_of(client: Client) -> pb.GetSystemHealthResponse:
    """Without a key, and in time."""
    started = time.monotonic()
    answer = await client.system.GetSystemHealth(pb.GetSystemHealthRequest())
    assert time.monotonic() - started < 1.0
    return answer


async def test_from_the_first_day_on(client: Client, db: asyncpg.Connection) -> None:
    health = await health_of(client)
    assert health.server.version == "0.1.0"
    assert health.server.pid > 0
    assert 0 < health.server.uptime_seconds < 60
    assert health.database.answers
    assert 0 < health.database.select_seconds < 1
    assert health.database.problem == ""
    assert health.served == pb.ServedHealth(active_version=0, exploration="off")
    assert health.served.HasField("active_version")
    assert not health.HasField("last_training_run")
    assert health.queue == pb.TrainingQueue(interactions_waiting=0)
    (job,) = health.scheduled_jobs
    assert (job.id, job.trigger) == ("rl_training", "0 1 * * 1")
    following = job.next_run_time.ToDatetime(UTC)
    assert (following.weekday(), following.hour, following.minute) == (0, 1, 0)
    assert timedelta(0) < following - datetime.now(UTC) <= timedelta(weeks=1)

    await record(client, *(logged(f"i{n}", "ada") for n in range(3)))
    assert (await health_of(client)).queue.interactions_waiting == 3
    run = await train(client)
    health = await health_of(client)
    last = health.last_training_run
    assert (last.run_id, last.status) == (run.run_id, tpb.TRAINING_RUN_STATUS_COMPLETED)
    assert (last.created_at, last.finished_at) == (run.created_at, run.finished_at)
    assert 0 < last.duration_seconds < 60
    assert last.model_version == run.model_version
    assert health.served.active_version == run.model_version
    since = health.served.active_since.ToDatetime(UTC)
    made = health.served.active_created_at.ToDatetime(UTC)
    assert abs(since - made) < timedelta(minutes=1)
    assert health.queue.interactions_waiting == 0

    await record(client, *(logged(f"j{n}", "ada") for n in range(2)))
    await record(client, *(logged(f"k{n}", "bob") for n in range(5)))
    assert (await health_of(client)).queue.interactions_waiting == 7
    await train(client, min_interactions_per_user=4)
    assert (await health_of(client)).queue.interactions_waiting == 2
    # What an older release trained does not say how far it came.
    await db.execute(
        "UPDATE system_tasks SET metadata = metadata #- '{training,interactions_through}'"
    )
    assert not (await health_of(client)).queue.HasField("interactions_waiting")


async def test_a_run_under_way(client: Client, db: asyncpg.Connection) -> None:
    await db.execute("SELECT pg_advisory_lock_shared(7270001)")
    run_id = await trigger(client)

    async def works() -> bool:
        return (await health_of(client)).queue.runs_running == 1

    await eventually(works)
    last = (await health_of(client)).last_training_run
    assert (last.run_id, last.status) == (run_id, tpb.TRAINING_RUN_STATUS_RUNNING)
    assert not last.HasField("finished_at")
    assert last.duration_seconds > 0
    await db.execute("SELECT pg_advisory_unlock_all()")
    await wait_ended(client, run_id)
    assert (await health_of(client)).queue.runs_running == 0


async def test_a_refused_version_is_said(client: Client, db: asyncpg.Connection) -> None:
    await record(client, logged("i", "ada"))
    run = await train(client, activate=False)
    await db.execute("UPDATE model_versions SET policy_checksum = 'other'")
    await db.execute("INSERT INTO model_activations (version) VALUES ($1)", run.model_version)

    async def refused() -> bool:
        return bool((await health_of(client)).served.refused_reason)

    await eventually(refused)
    served = (await health_of(client)).served
    assert (served.active_version, served.serving_version) == (run.model_version, 0)
    assert "checksum" in served.refused_reason


async def test_before_the_database_has_answered(settings: Settings, tmp_path: Path) -> None:
    nowhere = {"database_url": f"postgresql:///none?host={tmp_path}", "schedule": None}
    app = App(Settings(**{**settings.model_dump(), **nowhere}))
    await app.start()
    try:
        async with connect(f"127.0.0.1:{app.port}") as client:
            health = await health_of(client)
    finally:
        await app.stop()
    assert not health.database.answers
    assert health.database.problem == "has not answered since this server started"
    assert not health.served.HasField("active_version")
    assert not health.HasField("queue")
    assert not health.scheduled_jobs


async def test_the_command_line(client: Client, app: App) -> None:
    variables = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}", "RECPARAMS_ADMIN_KEY": ""}

    async def status() -> dict[str, str]:
        outcome = await run("status", **variables)
        assert outcome.code == 0, outcome.err
        pairs: Any = (line.split("  ", 1) for line in outcome.out.splitlines())
        return {name: value.strip() for name, value in pairs}

    await record(client, logged("i", "ada"))
    await train(client)
    said = await status()
    assert said["server"].startswith("0.1.0, process ")
    assert said["database"].startswith("answers within ")
    assert said["next training run"].endswith(" 01:00:00Z (0 1 * * 1)")
    assert said["active"] == "version 1"
    assert said["last training run"] == "1, completed"
    assert said["interactions waiting"] == "about 0"
    answer = (await run("status", "--json", **variables)).json
    assert answer["last_training_run"]["status"] == "TRAINING_RUN_STATUS_COMPLETED"
    assert answer["database"]["answers"] is True
