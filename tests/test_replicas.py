"""Several server processes on one database: what one does, the others follow."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_client.aio import AsyncRecParamsClient
from recparams_client.types import DecisionRequest, Interaction, PersonalityProfile
from recparams_server.store import interactions
from recparams_simulation.demo_server import free_port
from tests.faults import (
    SMALL,
    eventually,
    holding,
    trainer_is_blocked,
    trainer_process,
    trigger,
    updates_of,
)
from tests.support import (
    ADMIN,
    SEED_PERSONALITY,
    Client,
    ServerProcess,
    connect,
    failure_of,
    logged,
    record,
    request,
    start_in_vain,
    train,
    wait_ended,
    wait_serving,
)
from tests.test_metrics import decisions

BY_NOTIFICATION_ALONE = {"reload_poll_seconds": 3600, "profile_cache_seconds": 3600}
OTHER_PERSONALITY = types.PersonalityProfile(
    openness=10, conscientiousness=90, extraversion=40, agreeableness=80, neuroticism=90
)


@pytest.fixture
async def replicas(start_server: Any) -> AsyncIterator[tuple[Client, Client]]:
    """Clients of two servers on one database."""
    servers = [start_server(**SMALL, **BY_NOTIFICATION_ALONE) for _ in range(2)]
    async with connect(servers[0].target) as one, connect(servers[1].target) as other:
        await wait_serving(one)
        await wait_serving(other)
        yield one, other


async def served(client: Client) -> tuple[int, int]:
    """The version that decides, and the one in memory."""
    decision = await client.recommendation.GetRecommendationParams(request())
    listed = await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)
    return int(decision.model_version), int(listed.serving_version)


async def wait_served(version: int, *clients: Client) -> float:
    """Seconds until every one serves a version."""
    started = time.monotonic()

    async def everyone_serves() -> bool:
        return all([await served(client) == (version, version) for client in clients])

    await eventually(everyone_serves)
    return time.monotonic() - started


async def test_a_training_on_one_is_served_by_the_other_within_a_second(
    replicas: tuple[Client, Client],
) -> None:
    seconds = []
    for number in range(3):
        trainer, other = replicas if number % 2 == 0 else reversed(replicas)
        await record(trainer, *(logged(f"{number}-{i}", "ada") for i in range(10)))
        run = await train(trainer)
        assert run.model_version == number + 1
        seconds.append(await wait_served(run.model_version, other, trainer))
    # The machine may have a bad moment, but not three in a row.
    assert min(seconds) < 1.0
    assert max(seconds) < 5.0


async def test_activations_and_rollbacks_reach_everyone(replicas: tuple[Client, Client]) -> None:
    one, other = replicas
    for version in (1, 2):
        await record(one, logged(str(version), "ada"))
        await train(one)
        await wait_served(version, one, other)

    def activate(client: Client, version: int) -> Awaitable[Any]:
        return client.models.ActivateModel(
            mpb.ActivateModelRequest(version=version), metadata=ADMIN
        )

    def roll_back(client: Client) -> Awaitable[Any]:
        return client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)

    steps: list[tuple[Callable[[], Awaitable[Any]], int]] = [
        (lambda: activate(other, 1), 1),
        (lambda: activate(one, 0), 0),
        (lambda: roll_back(other), 1),
        (lambda: roll_back(one), 2),
        (lambda: roll_back(one), 1),
        (lambda: roll_back(other), 0),
    ]
    for step, version in steps:
        await step()
        await wait_served(version, one, other)


async def test_a_lost_notification_is_made_up_for(
    start_server: Any, db: asyncpg.Connection
) -> None:
    server = start_server(**SMALL, reload_poll_seconds=0.2)
    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, logged("i", "ada"))
        run = await train(client, activate=False)
        await db.execute("ALTER TABLE model_activations DISABLE TRIGGER ALL")
        await db.execute("INSERT INTO model_activations (version) VALUES ($1)", run.model_version)
        await wait_served(run.model_version, client)


async def put_profiles(
    client: Client, user_ids: list[str], personality: types.PersonalityProfile
) -> None:
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(
            profiles=[
                pb.UserPersonalityProfile(user_id=user_id, personality=personality)
                for user_id in user_ids
            ]
        )
    )


async def action_of(client: Client, user_id: str, **fields: object) -> types.Action:
    answer = await client.recommendation.GetRecommendationParams(
        request(user_id, **{"personality": None, **fields})
    )
    return answer.action


@pytest.mark.parametrize("people", [1, 60])
async def test_a_profile_put_on_one_replaces_a_cached_one(
    replicas: tuple[Client, Client], people: int
) -> None:
    one, other = replicas
    everybody = [f"user-{n}" for n in range(people)]
    for personality in (SEED_PERSONALITY, OTHER_PERSONALITY, SEED_PERSONALITY):
        expected = await action_of(other, "x", personality=personality)
        await put_profiles(one, everybody, personality)
        for client in replicas:
            for user_id in everybody[-3:]:
                await eventually(lambda ask=(client, user_id, expected): _has_action(*ask), 5)


async def _has_action(client: Client, user_id: str, expected: types.Action) -> bool:
    return await action_of(client, user_id) == expected


async def test_a_profile_that_changes_while_it_is_read(
    replicas: tuple[Client, Client], db: asyncpg.Connection, database_url: str
) -> None:
    """What was read before a change must not be kept after the news of the change."""
    one, other = replicas
    await put_profiles(one, ["ada"], SEED_PERSONALITY)
    before, after = [
        await action_of(one, "x", personality=personality)
        for personality in (SEED_PERSONALITY, OTHER_PERSONALITY)
    ]
    assert before != after
    await db.execute(
        """
        CREATE FUNCTION slowly() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(43);
            RETURN true;
        END $$;
        ALTER TABLE personality_profiles RENAME TO real_profiles;
        CREATE VIEW personality_profiles AS SELECT * FROM real_profiles WHERE slowly()
        """
    )

    async def is_reading() -> bool:
        return bool(
            await db.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
        )

    async with holding(database_url, "SELECT pg_advisory_xact_lock(43)"):
        reading = asyncio.create_task(action_of(other, "ada"))
        await eventually(is_reading)
        async with db.transaction():
            await db.execute("UPDATE real_profiles SET openness = 10, conscientiousness = 90")
            await db.execute("UPDATE real_profiles SET neuroticism = 90")
            await db.execute("SELECT pg_notify('recparams_profiles', 'ada')")
        # Time for the news to arrive; the read gives up by itself after a quarter of a second.
        await asyncio.sleep(0.05)
    await reading

    await eventually(lambda: _has_action(other, "ada", after), 5)


async def test_they_start_together_on_an_empty_database(
    db: asyncpg.Connection, postgres: Any, start_server: Any
) -> None:
    name = f"empty_{uuid.uuid4().hex[:12]}"
    await db.execute(f"CREATE DATABASE {name}")
    url = postgres.get_uri(database=name)
    empty = await asyncpg.connect(url)

    async def all_wait() -> bool:
        waiting = await empty.fetchval(
            """
            SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 7270000
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            """
        )
        return bool(waiting == 3)

    try:
        async with holding(url, "SELECT pg_advisory_xact_lock(7270000)"):
            servers = await asyncio.gather(
                *(
                    asyncio.to_thread(
                        start_server, database_url=url, data_dir=f"/tmp/{name}", **SMALL
                    )
                    for _ in range(3)
                )
            )
            await eventually(all_wait)
        tokens = []
        for server in servers:
            async with connect(server.target) as client:
                await wait_serving(client)
                tokens.append(await token_of(client))
        for token in tokens:
            async with connect(servers[0].target) as client:
                await record(client, reaction(token))
        assert await empty.fetchval("SELECT count(*) FROM alembic_version") == 1
        for server in servers:
            server.kill()
    finally:
        await empty.close()
        await db.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def token_of(client: Client) -> bytes:
    answer = await client.recommendation.GetRecommendationParams(request())
    return bytes(answer.decision_token)


def reaction(token: bytes) -> pb.Interaction:
    return pb.Interaction(
        interaction_id=uuid.uuid4().hex,
        user_id="ada",
        decision_token=token,
        reactions=[types.REACTION_LIKE],
    )


async def test_a_decision_outlives_the_server_that_made_it(start_server: Any) -> None:
    one, other = start_server(**SMALL), start_server(**SMALL)
    async with connect(one.target) as first, connect(other.target) as second:
        await wait_serving(first)
        await wait_serving(second)
        token = await token_of(first)
        assert (await record(second, reaction(token))).recorded == 1
    assert one.terminate() == 0
    other.kill()
    async with connect(start_server(**SMALL).target) as third:
        await wait_serving(third)
        assert (await record(third, reaction(token))).recorded == 1


class Traffic:
    """Callers of a client library, until they are stopped."""

    def __init__(self, client: AsyncRecParamsClient) -> None:
        self.client = client
        self.calls = 0
        self.recorded = 0

    async def decide(self) -> None:
        wanted = DecisionRequest(
            user_id="ada",
            content_type="music",
            mood="calm",
            time_of_day="evening",
            personality=PersonalityProfile(75, 60, 40, 80, 30),
        )
        while True:
            answer = await self.client.get_recommendation_params(wanted)
            assert not answer.is_fallback, answer
            self.calls += 1
            one = Interaction(
                interaction_id=uuid.uuid4().hex,
                user_id="ada",
                decision_token=answer.decision_token,
                reactions=("like",),
            )
            result = await self.client.record_interactions([one])
            assert result.recorded + result.duplicates == 1
            self.calls += 1
            self.recorded += 1

    async def more(self, calls: int) -> None:
        """Waits for that many calls more."""
        wanted = self.calls + calls

        async def reached() -> bool:
            return self.calls >= wanted

        await eventually(reached)


async def test_a_rolling_restart_under_load_fails_no_call(
    start_server: Any, db: asyncpg.Connection
) -> None:
    """Each is restarted once the client has found the one before it again."""
    ports = [free_port("127.0.0.1", 0) for _ in range(2)]
    servers = [start_server(metrics_port=port, **SMALL) for port in ports]
    for server in servers:
        await _wait_serving(server)
    addresses = [server.target for server in servers]

    async def all_answer() -> bool:
        return all([await asyncio.to_thread(decisions, port) > 0 for port in ports])

    async with (
        AsyncRecParamsClient(addresses, decision_timeout=10, write_timeout=20) as client,
        asyncio.TaskGroup() as group,
    ):
        traffic = Traffic(client)
        callers = [group.create_task(traffic.decide()) for _ in range(6)]
        await traffic.more(100)
        for number, server in enumerate(servers):
            await eventually(all_answer)
            assert await asyncio.to_thread(server.terminate) == 0
            await traffic.more(50)
            servers[number] = start_server(port=server.port, metrics_port=ports[number], **SMALL)
            await _wait_serving(servers[number])
        await eventually(all_answer)
        for caller in callers:
            caller.cancel()
    stored = await db.fetchval("SELECT count(*) FROM interactions")
    assert traffic.recorded <= stored <= traffic.recorded + len(callers)


async def _wait_serving(server: ServerProcess) -> None:
    async with connect(server.target) as client:
        await wait_serving(client)


async def _logged(server: ServerProcess, event: str) -> None:
    async def is_logged() -> bool:
        return any(line.get("event") == event for line in server.events())

    await eventually(is_logged)


async def test_calls_under_way_are_finished(
    start_server: Any, db: asyncpg.Connection, database_url: str
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        async with holding(database_url, "LOCK interactions"):
            calls = [asyncio.create_task(record(client, logged(str(n), f"u{n}"))) for n in range(3)]
            await eventually(lambda: _inserts_wait(db, 3))
            stopping = asyncio.create_task(asyncio.to_thread(server.terminate))
            await _logged(server, "draining")
        assert [answer.recorded for answer in await asyncio.gather(*calls)] == [1, 1, 1]
    assert await stopping == 0
    assert await db.fetchval("SELECT count(*) FROM interactions") == 3


async def _inserts_wait(db: asyncpg.Connection, count: int) -> bool:
    waiting = await db.fetchval(
        """
        SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'RowExclusiveLock'
            AND relation = 'interactions'::regclass
        """
    )
    return bool(waiting == count)


async def test_draining_has_an_end(
    start_server: Any, db: asyncpg.Connection, database_url: str
) -> None:
    server = start_server(drain_seconds=0.5, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        async with holding(database_url, "LOCK interactions"):
            call = asyncio.create_task(failure_of(record(client, logged("i", "ada"))))
            await eventually(lambda: _inserts_wait(db, 1))
            started = time.monotonic()
            assert await asyncio.to_thread(server.terminate) == 0
            assert time.monotonic() - started < 10
            await call
    assert await db.fetchval("SELECT count(*) FROM interactions") == 0


async def test_a_server_that_stops_ends_its_training(
    replicas: tuple[Client, Client], start_server: Any, db: asyncpg.Connection, database_url: str
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, *(logged(str(n), "ada") for n in range(10)))
        async with holding(database_url, "LOCK users"):
            run_id = await trigger(client)
            await eventually(lambda: trainer_is_blocked(db, "users"))
            trainer = trainer_process(server.process.pid, run_id)
            assert await asyncio.to_thread(server.terminate) == 0
            assert not trainer.is_running()
    run = await wait_ended(replicas[0], run_id)
    assert run.status == tpb.TRAINING_RUN_STATUS_FAILED
    again = await train(replicas[0])
    assert again.interactions_trained == 10


async def test_a_taken_port(start_server: Any, tmp_path: Path) -> None:
    server = start_server(admin_key="")
    key = (tmp_path / "admin-key").read_text()
    failed = await asyncio.to_thread(
        start_in_vain, port=server.port, data_dir=tmp_path, admin_key=""
    )
    assert failed.returncode == 1
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert f"127.0.0.1:{server.port}" in line
    assert "another server" in line
    assert (tmp_path / "admin-key").read_text() == key
    await _wait_serving(server)


@pytest.mark.parametrize("key", ["", "hunter2", "admin-dev-key-change-in-production"])
async def test_production_needs_a_key(tmp_path: Path, key: str) -> None:
    failed = await asyncio.to_thread(
        start_in_vain, port=0, data_dir=tmp_path, environment="production", admin_key=key
    )
    assert failed.returncode == 2
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert "admin_key" in line
    assert key not in line or not key


async def test_serving_goes_on_while_a_large_run_trains(
    start_server: Any, db: asyncpg.Connection
) -> None:
    count = 200_000
    now = datetime.now(UTC)
    for day in range(8):
        await interactions.ensure_partition(db, now - timedelta(days=day))
    await db.execute("INSERT INTO users (user_id) SELECT 'u' || n FROM generate_series(1, 2000) n")
    await db.execute(
        """
        INSERT INTO interactions (interaction_id, user_key, occurred_at, content_type, mood,
            time_of_day, action, reactions, completion_rate,
            openness, conscientiousness, extraversion, agreeableness, neuroticism)
        SELECT n, n % 2000 + 1, now() - interval '5 days' + n * interval '2 seconds',
            n % 3 + 1, n % 8 + 1, n % 4 + 1, n * 7 % 27, 1 << (n % 6)::int, n % 100 / 100.0,
            n % 101, n * 3 % 101, n * 5 % 101, n * 7 % 101, n * 11 % 101
        FROM generate_series(1, $1::bigint) AS n
        """,
        count,
    )
    server = start_server()
    latencies: list[float] = []
    async with connect(server.target) as client:
        await wait_serving(client)

        async def decide() -> None:
            while True:
                started = time.monotonic()
                await client.recommendation.GetRecommendationParams(request())
                latencies.append(time.monotonic() - started)
                await asyncio.sleep(0.005)

        async def write() -> None:
            number = 0
            while True:
                async with asyncio.timeout(5):
                    await record(client, logged(f"new-{number}", "ada"))
                number += 1
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(work()) for work in (decide, decide, write)]
            run = await train(client)
            for caller in callers:
                caller.cancel()
    assert run.status == tpb.TRAINING_RUN_STATUS_COMPLETED
    assert run.interactions_trained >= count
    assert await updates_of(db, run.model_version) == run.interactions_trained
    assert len(latencies) > 100
    assert max(latencies) < 2.0
