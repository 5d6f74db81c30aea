"""Every interaction is trained exactly once, whatever dies and whoever writes at the same time."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams_server.app import App
from recparams_server.jobs.forked import Template
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training import on_disk
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.run import NotWantedError
from recparams_server.jobs.training.run import _run as run_without_supervision
from recparams_server.jobs.training.run import train as train_run
from recparams_server.settings import Settings
from recparams_server.store import tasks, training
from tests.faults import (
    SMALL,
    assert_same,
    batch,
    eventually,
    find_trainer,
    get_run,
    gone,
    holding,
    job_processes,
    learned,
    said_killed,
    stored_table,
    train_here,
    trained_state,
    trainer_is_blocked,
    trainer_process,
    trainers_are_gone,
    trigger,
    updates_of,
)
from tests.support import (
    ADMIN,
    ENDED,
    SEED_PERSONALITY,
    Client,
    connect,
    failure_of,
    in_process,
    logged,
    record,
    request,
    train,
    wait_ended,
    wait_serving,
)

INCREMENTAL, REBUILD = tpb.TRAINING_MODE_INCREMENTAL, tpb.TRAINING_MODE_REBUILD
COMPLETED, FAILED = tpb.TRAINING_RUN_STATUS_COMPLETED, tpb.TRAINING_RUN_STATUS_FAILED


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@dataclass(frozen=True)
class Point:
    """A point that a trainer gets to and not past.

    Attributes:
        blocked_by: what it waits for there, as `trainer_is_blocked` wants it.
        lock: statement that takes the lock in a transaction.
        mode: of the run.
        triggers: statements that prepare the database.
    """

    blocked_by: str
    lock: str
    mode: int = INCREMENTAL
    triggers: tuple[str, ...] = field(default=())


# A deferred trigger runs within COMMIT, after the trainer's last statement.
_WITHIN_COMMIT = (
    """
    CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(42);
        RETURN NULL;
    END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER wait_for_test AFTER UPDATE ON system_tasks
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.status = 'completed')
        EXECUTE FUNCTION wait_for_test()
    """,
)

POINTS = {
    "before it begins": Point("7270002", "SELECT pg_advisory_xact_lock(7270002)"),
    "at the snapshot": Point("7270001", "SELECT pg_advisory_xact_lock_shared(7270001)"),
    "within the snapshot": Point("interactions", "LOCK interactions"),
    "at reading": Point("users", "LOCK users"),
    "at writing the version": Point("model_versions", "LOCK model_versions IN SHARE MODE"),
    "at writing the watermarks": Point(
        "transactionid", "SELECT FROM users WHERE user_id = 'user-3' FOR UPDATE"
    ),
    "at the activation": Point("model_activations", "LOCK model_activations IN SHARE MODE"),
    "within the commit": Point("42", "SELECT pg_advisory_xact_lock(42)", triggers=_WITHIN_COMMIT),
    "at the activation of a rebuild": Point(
        "model_activations", "LOCK model_activations IN SHARE MODE", REBUILD
    ),
}


@asynccontextmanager
async def stopped_at(
    point: Point, client: Client, db: asyncpg.Connection, url: str
) -> AsyncIterator[int]:
    """A run whose trainer waits at a point until the end of the block."""
    for statement in point.triggers:
        await db.execute(statement)
    async with holding(url, point.lock):
        run_id = await trigger(client, mode=point.mode)
        await eventually(lambda: trainer_is_blocked(db, point.blocked_by))
        yield run_id


async def assert_trained_once(
    db: asyncpg.Connection, version: int, interactions: list[pb.Interaction]
) -> None:
    """A version's table is that of one undisturbed pass over the interactions."""
    table = await stored_table(db, version)
    assert table.visits.sum() == len(interactions)
    assert_same(table, learned(interactions))


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())
async def test_a_killed_trainer_leaves_nothing_behind(
    client: Client, db: asyncpg.Connection, settings: Settings, database_url: str, point: Point
) -> None:
    first, second = batch(0), batch(1)
    await record(client, *first)
    good = await train_here(db, settings)
    await record(client, *second)
    before = await trained_state(db)

    async with stopped_at(point, client, db, database_url) as run_id:
        trainer_process(os.getpid(), run_id).kill()
        await eventually(lambda: trainers_are_gone(db))
    killed = await wait_ended(client, run_id)
    assert killed.status == FAILED
    await said_killed(db, run_id)
    assert killed.model_version == 0
    assert await trained_state(db) == before
    answer = await client.recommendation.GetRecommendationParams(request())
    assert answer.model_version == good

    again = await train(client, mode=point.mode)
    assert again.status == COMPLETED
    expected = len(second) if point.mode == INCREMENTAL else len(first) + len(second)
    assert again.interactions_trained == expected
    await assert_trained_once(db, again.model_version, first + second)


async def test_trainers_killed_at_any_moment(client: Client, db: asyncpg.Connection) -> None:
    draw = random.Random(7)
    recorded: list[pb.Interaction] = []
    for number in range(5):
        recorded += (new := batch(number))
        await record(client, *new)
        run_id = await trigger(client)
        # Not a wait for something: the moment of the kill is what varies.
        await asyncio.sleep(draw.uniform(0.0, 0.3))
        try:
            process = await eventually(lambda run_id=run_id: _trainer_unless_ended(client, run_id))
            process.kill()
        except (EndedError, psutil.NoSuchProcess):
            assert (await wait_ended(client, run_id)).status == COMPLETED
        run = await wait_ended(client, run_id)
        assert run.status in (COMPLETED, FAILED)
    last = await train(client)
    assert last.status == COMPLETED
    await assert_trained_once(db, await training.base_version(db) or 0, recorded)


class EndedError(Exception):
    """A run has no process any more."""


async def _trainer_unless_ended(client: Client, run_id: int) -> psutil.Process | None:
    ended = (await get_run(client, run_id)).status in ENDED
    process = find_trainer(os.getpid(), run_id)
    if process is None and ended:
        raise EndedError
    return process


async def test_a_rebuild_equals_the_runs_it_stands_for(
    client: Client, db: asyncpg.Connection
) -> None:
    recorded: list[pb.Interaction] = []
    for number in range(2):
        recorded += (new := batch(number))
        await record(client, *new)
        run = await train(client)
        assert run.interactions_trained == len(new)
    watermarks = await db.fetch("SELECT user_key, trained_through FROM users ORDER BY 1")
    rebuilt = await train(client, mode=REBUILD)
    assert rebuilt.parent_version == 0
    assert_same(
        await stored_table(db, rebuilt.model_version), await stored_table(db, run.model_version)
    )
    await assert_trained_once(db, rebuilt.model_version, recorded)
    assert watermarks == await db.fetch("SELECT user_key, trained_through FROM users ORDER BY 1")
    assert (await train(client)).interactions_trained == 0


async def test_interactions_arrive_while_runs_go_on(client: Client, db: asyncpg.Connection) -> None:
    stop = asyncio.Event()

    async def write(writer: int) -> int:
        acknowledged = 0
        while not stop.is_set():
            draw = random.Random(acknowledged)
            start = datetime.now(UTC) - timedelta(hours=1)
            answer = await record(
                client,
                *(
                    logged(
                        f"w{writer}-{acknowledged + i}",
                        f"user-{draw.randrange(20)}",
                        occurred_at=start + timedelta(milliseconds=i),
                    )
                    for i in range(draw.randint(1, 40))
                ),
            )
            acknowledged += answer.recorded
            await asyncio.sleep(0.01)
        return acknowledged

    writers = [asyncio.create_task(write(n)) for n in range(2)]
    trained = []
    try:
        for _ in range(3):
            run = await train(client)
            assert run.status == COMPLETED
            trained.append(run.interactions_trained)
    finally:
        stop.set()
    acknowledged = sum(await asyncio.gather(*writers))
    last = await train(client)
    assert sum(1 for count in trained if count > 0) == 3
    assert sum(trained) + last.interactions_trained == acknowledged
    assert await updates_of(db, await training.base_version(db) or 0) == acknowledged
    assert await db.fetchval("SELECT count(*) FROM interactions") == acknowledged


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
async def test_a_snapshot_waits_for_inserts_under_way(
    client: Client, db: asyncpg.Connection, database_url: str, outcome: str
) -> None:
    await record(client, logged("first", "ada"))
    insert = """
        INSERT INTO users (user_id) VALUES ('slow');
        INSERT INTO interactions (occurred_at, user_key, interaction_id, content_type, mood,
            time_of_day, action, reactions, openness, conscientiousness, extraversion,
            agreeableness, neuroticism)
        SELECT now() - interval '1 hour', user_key, 'slow', 1, 1, 3, 5, 1, 50, 50, 50, 50, 50
        FROM users WHERE user_id = 'slow'
    """
    async with holding(database_url, insert) as slow:
        slow_id = await slow.fetchval("SELECT id FROM interactions WHERE interaction_id = 'slow'")
        await record(client, logged("later", "ada"))
        assert slow_id < await db.fetchval("SELECT max(id) FROM interactions")
        run_id = await trigger(client)
        await eventually(lambda: trainer_is_blocked(db, "7270001"))
        # Others write on meanwhile; the trainer's waiting must not make them queue behind it.
        for number in range(20):
            async with asyncio.timeout(30):
                await record(client, logged(f"meanwhile-{number}", "ada"))
        run = await get_run(client, run_id)
        assert run.status == tpb.TRAINING_RUN_STATUS_RUNNING
        assert run.stage == "starting"
        await slow.execute(outcome)
        run = await wait_ended(client, run_id)
    last = await train(client)
    total = 22 + (outcome == "commit")
    assert run.status == COMPLETED
    assert run.interactions_trained + last.interactions_trained == total
    assert await updates_of(db, await training.base_version(db) or 0) == total


async def test_people_with_too_little_wait(client: Client, db: asyncpg.Connection) -> None:
    async def watermarks() -> dict[str, int]:
        rows = await db.fetch("SELECT user_id, trained_through FROM users")
        return {row["user_id"]: row["trained_through"] for row in rows}

    await record(client, *(logged(f"a{i}", "ada") for i in range(6)))
    await record(client, *(logged(f"b{i}", "ben") for i in range(3)))
    first = await train(client, min_interactions_per_user=5)
    assert (first.interactions_trained, first.interactions_waiting) == (6, 3)
    assert await watermarks() == {"ada": 6, "ben": 0}
    await record(client, *(logged(f"c{i}", "ben") for i in range(2)), logged("d", "ada"))
    second = await train(client, min_interactions_per_user=5)
    assert (second.interactions_trained, second.interactions_waiting) == (5, 1)
    assert await watermarks() == {"ada": 6, "ben": 11}
    third = await train(client, min_interactions_per_user=1)
    assert third.interactions_trained == 1
    assert await updates_of(db, third.model_version) == 12


async def test_people_without_a_profile_wait(client: Client, db: asyncpg.Connection) -> None:
    def nameless(interaction_id: str) -> pb.Interaction:
        message = logged(interaction_id, "ada")
        message.logged_decision.ClearField("personality")
        return message

    await record(client, logged("a", "ada"), nameless("b"), logged("c", "ada"))
    first = await train(client)
    assert (first.interactions_trained, first.interactions_waiting) == (1, 2)
    assert await db.fetchval("SELECT trained_through FROM users") == 1
    await put_profile(client, "ada")
    second = await train(client)
    assert (second.interactions_trained, second.interactions_waiting) == (2, 0)
    assert await updates_of(db, second.model_version) == 3


async def put_profile(client: Client, user_id: str) -> None:
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(
            profiles=[pb.UserPersonalityProfile(user_id=user_id, personality=SEED_PERSONALITY)]
        )
    )


async def test_a_profile_and_an_interaction_that_do_not_see_each_other(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """Both are stored at the same time: neither transaction sees what the other one writes."""
    await db.execute("INSERT INTO users (user_id) VALUES ('ada')")
    insert = """
        INSERT INTO interactions (occurred_at, user_key, interaction_id, content_type, mood,
            time_of_day, action, reactions)
        SELECT now() - interval '1 hour', user_key, 'i', 1, 1, 3, 5, 1 FROM users
    """
    async with holding(database_url, insert) as inserting:
        await put_profile(client, "ada")
        await inserting.execute("commit")
    await record(client, logged("later", "ada"))
    run = await train(client)
    assert (run.interactions_trained, run.interactions_waiting) == (2, 0)


@pytest.mark.parametrize("name", ["before it begins", "at the snapshot", "at reading"])
async def test_a_cancelled_run_leaves_nothing_behind(
    client: Client, db: asyncpg.Connection, database_url: str, name: str
) -> None:
    await record(client, *batch(0))
    before = await trained_state(db)
    async with stopped_at(POINTS[name], client, db, database_url) as run_id:
        cancelling = tpb.CancelTrainingRunRequest(run_id=run_id)
        await client.training.CancelTrainingRun(cancelling, metadata=ADMIN)
        if name != "before it begins":
            ended = await wait_ended(client, run_id)
            assert ended.status == tpb.TRAINING_RUN_STATUS_CANCELLED
    ended = await wait_ended(client, run_id)
    assert ended.status == tpb.TRAINING_RUN_STATUS_CANCELLED
    await eventually(lambda: trainers_are_gone(db))
    assert await trained_state(db) == before
    again = await train(client)
    await assert_trained_once(db, again.model_version, batch(0))


async def test_a_run_that_commits_can_no_longer_be_cancelled(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    await record(client, *batch(0))
    async with stopped_at(POINTS["at the activation"], client, db, database_url) as run_id:
        cancelling = asyncio.create_task(
            failure_of(
                client.training.CancelTrainingRun(
                    tpb.CancelTrainingRunRequest(run_id=run_id), metadata=ADMIN
                )
            )
        )
        await eventually(lambda: _waits_for_the_run(db))
    assert (await cancelling).reason == "RUN_ENDED"
    run = await wait_ended(client, run_id)
    assert run.status == COMPLETED
    await assert_trained_once(db, run.model_version, batch(0))


async def _waits_for_the_run(db: asyncpg.Connection) -> bool:
    return bool(
        await db.fetchval(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query LIKE '%SET cancel_requested%'
            """
        )
    )


async def test_a_rebuild_gives_back_whom_it_left_out(
    client: Client, db: asyncpg.Connection
) -> None:
    await record(client, *(logged(f"a{i}", "ada") for i in range(6)))
    await record(client, *(logged(f"b{i}", "ben") for i in range(3)))
    assert (await train(client)).interactions_trained == 9
    rebuilt = await train(client, mode=REBUILD, min_interactions_per_user=5)
    assert rebuilt.interactions_trained == 6
    assert await updates_of(db, rebuilt.model_version) == 6
    last = await train(client)
    assert last.interactions_trained == 3
    assert await updates_of(db, last.model_version) == 9
    assert (await train(client)).interactions_trained == 0


ENDS_WITHIN = 10.0
"""Seconds after its server's death in which a trainer ends, on a machine far slower than ours."""


@pytest.mark.parametrize("name", ["at reading", "at the activation", "within the commit"])
async def test_the_trainer_of_a_killed_server_ends_with_it(
    client: Client, db: asyncpg.Connection, database_url: str, start_server: Any, name: str
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as owner:
        await wait_serving(owner)
        await record(owner, *batch(0))
        before = await trained_state(db)
        async with stopped_at(POINTS[name], owner, db, database_url) as run_id:
            orphan = trainer_process(server.process.pid, run_id)
            server.kill()
            await gone(orphan, ENDS_WITHIN)
            await eventually(lambda: trainers_are_gone(db), ENDS_WITHIN)
    assert await trained_state(db) == before
    second = await trigger(client)
    left = await get_run(client, run_id)
    assert (left.status, left.model_version) == (FAILED, 0)
    assert (await wait_ended(client, second)).status == COMPLETED
    assert await db.fetchval("SELECT count(*) FROM model_versions") == 1
    await assert_trained_once(db, await training.base_version(db) or 0, batch(0))


async def test_other_jobs_of_a_killed_server_end_with_it(
    client: Client, db: asyncpg.Connection, database_url: str, start_server: Any
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as owner:
        await wait_serving(owner)
        await record(owner, *batch(0))
        async with holding(database_url, "LOCK interactions"):
            asking = asyncio.create_task(
                failure_of(owner.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN))
            )
            jobs = await eventually(lambda: _jobs_of(server.process.pid))
            server.kill()
            for job in jobs:
                await gone(job, ENDS_WITHIN)
        assert (await asking).code == grpc.StatusCode.UNAVAILABLE


async def _jobs_of(server_pid: int) -> list[psutil.Process]:
    return job_processes(server_pid)


async def test_the_trainer_of_a_killed_server_is_fenced_off(
    client: Client, db: asyncpg.Connection, database_url: str, start_server: Any
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as owner:
        await wait_serving(owner)
        await record(owner, *batch(0))
        async with stopped_at(POINTS["at reading"], owner, db, database_url) as run_id:
            orphan = trainer_process(server.process.pid, run_id)
            server.kill()
            assert await tasks.end(db, run_id, "failed", "taken for dead")
            second = await trigger(client)
            await gone(orphan, 60.0)
    ended = await wait_ended(client, second)
    assert ended.status == COMPLETED
    orphaned = await get_run(client, run_id)
    assert (orphaned.status, orphaned.error) == (FAILED, "taken for dead")
    assert await db.fetchval("SELECT count(*) FROM model_versions") == 1
    await assert_trained_once(db, ended.model_version, batch(0))


@pytest.mark.parametrize("status", ["failed", "cancelled", "completed", "cancel requested"])
async def test_a_trainer_commits_only_its_own_live_run(
    client: Client, db: asyncpg.Connection, settings: Settings, status: str
) -> None:
    """The check within the commit, for a trainer that nobody could tell of the run's end."""
    await record(client, *batch(0))
    wanted = RunRequest(False, None, 1, settings.hyperparameters(), datetime.now(UTC), True)
    run_id = await tasks.create(db, "orphan", wanted.to_dict())
    await training.begin(db, run_id)
    if status == "cancel requested":
        await db.execute("UPDATE system_tasks SET cancel_requested = true")
    else:
        await db.execute("UPDATE system_tasks SET status = $1", status)
    before = await trained_state(db)
    with pytest.raises(NotWantedError):
        await run_without_supervision(db, settings, run_id, wanted, Progress())
    assert await trained_state(db) == before
    assert await db.fetchval("SELECT metadata->'training' FROM system_tasks") is None


_MANY = """
    INSERT INTO interactions (
        occurred_at, user_key, interaction_id, content_type, mood, time_of_day, action,
        reactions, openness, conscientiousness, extraversion, agreeableness, neuroticism
    )
    SELECT now() - interval '2 days' + i * interval '1 s', user_key, 'many-' || i, 1, 1 + i % 3, 3,
        i % 27, (1 << (i / 7 % 4)::int), o, 100 - o, o, 40, 60
    FROM generate_series(1, $1::bigint) AS i,
        LATERAL (SELECT 1 + i / 5 % 50 AS user_key, i / 5 % 50 * 2.0 AS o) AS person
"""


@pytest.fixture
async def of_little_memory(settings: Settings, template: Template) -> AsyncIterator[Client]:
    """A client of a server whose runs hold `on_disk.LEAST_ROWS` in memory."""
    app = App(settings.model_copy(update={"training_memory_mb": 64}), template=template)
    await app.start()
    async with connect(f"127.0.0.1:{app.port}") as client:
        await wait_serving(client)
        yield client
    await app.stop()


def open_files(process: psutil.Process) -> list[str]:
    """The files that a process holds open, those without a name included; none but on Linux."""
    folder = Path(f"/proc/{process.pid}/fd")
    return [str(file.readlink()) for file in folder.iterdir()] if folder.exists() else []


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_commit_may_take_longer_than_the_wait_for_another_trainer(
    client: Client,
    db: asyncpg.Connection,
    settings: Settings,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recparams_server.jobs.training.run.LOCK_TIMEOUT", "1s")
    await record(client, *batch(0))
    for statement in _WITHIN_COMMIT:
        await db.execute(statement)
    wanted = RunRequest(False, None, 1, settings.hyperparameters(), datetime.now(UTC), True)
    run_id = await tasks.create(db, "slow", wanted.to_dict())
    async with holding(database_url, "SELECT pg_advisory_xact_lock(42)"):
        running = asyncio.create_task(train_run(settings, run_id))
        await eventually(lambda: trainer_is_blocked(db, "42"))
        await asyncio.sleep(2)
        assert not running.done()
    assert await running == 0
    assert (await get_run(client, run_id)).status == COMPLETED


async def test_a_run_of_more_than_memory_holds_leaves_nothing_when_killed(
    of_little_memory: Client, db: asyncpg.Connection, settings: Settings, database_url: str
) -> None:
    client, folder = of_little_memory, settings.data_dir
    many = 3 * on_disk.LEAST_ROWS
    await db.execute("INSERT INTO users (user_id) SELECT 'u' || generate_series(1, 50)")
    await db.execute(_MANY, many)
    before, files = await trained_state(db), files_in(folder)
    async with AsyncExitStack() as before_reading:
        await before_reading.enter_async_context(holding(database_url, "LOCK users"))
        run_id = await trigger(client)
        await eventually(lambda: trainer_is_blocked(db, "users"))
        # It reads them once all is read and prepared.
        async with holding(database_url, "LOCK model_activations"):
            await before_reading.aclose()
            await eventually(lambda: trainer_is_blocked(db, "model_activations"))
            trainer = trainer_process(os.getpid(), run_id)
            held = open_files(trainer)
            trainer.kill()
            await eventually(lambda: trainers_are_gone(db))
    assert not held or any(file.startswith(str(folder)) for file in held)
    assert (await wait_ended(client, run_id)).status == FAILED
    assert await trained_state(db) == before
    assert files_in(folder) == files

    in_parts = await train(client)
    assert in_parts.interactions_trained == many
    assert files_in(folder) == files
    whole = await train_here(db, settings, activate=False, rebuild=True)
    assert whole > in_parts.model_version
    assert_same(await stored_table(db, in_parts.model_version), await stored_table(db, whole))
