"""The database stops, starts and hangs while the service is in use."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_server.store.migration import migrate
from tests.faults import (
    SMALL,
    OwnPostgres,
    eventually,
    get_run,
    holding,
    trainer_is_blocked,
    trigger,
    updates_of,
)
from tests.support import (
    ADMIN,
    Client,
    connect,
    failure_of,
    logged,
    record,
    request,
    train,
    wait_serving,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NO_PROFILE = pb.FALLBACK_REASON_NO_PROFILE
NO_MODEL = pb.FALLBACK_REASON_NO_MODEL
PROFILE_UNAVAILABLE = pb.FALLBACK_REASON_PROFILE_UNAVAILABLE


@pytest.fixture
async def own_url(own_postgres: OwnPostgres) -> str:
    """A fresh database of a Postgres that the test may stop."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(own_postgres.uri("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    return own_postgres.uri(name)


@pytest.fixture
async def own_client(own_url: str, start_server: Any) -> AsyncIterator[Client]:
    """A client of a server that learns of models by notification alone."""
    server = start_server(
        database_url=own_url, reload_poll_seconds=3600, profile_cache_seconds=0.5, **SMALL
    )
    async with connect(server.target) as connected:
        await wait_serving(connected)
        yield connected


async def stop(postgres: OwnPostgres) -> None:
    await asyncio.to_thread(postgres.stop)


async def start(postgres: OwnPostgres) -> None:
    await asyncio.to_thread(postgres.start)


async def store_profile(url: str, user_id: str) -> None:
    """By SQL, so that no notification makes the server forget it at some later time."""
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO users (user_id) VALUES ($1)", user_id)
    await connection.execute(
        "INSERT INTO personality_profiles SELECT user_key, 75, 60, 40, 80, 30 FROM users"
    )
    await connection.close()


async def fallback_reason(client: Client, user_id: str) -> int:
    """Why the rules answer for someone whose profile is not in the request."""
    answer = await client.recommendation.GetRecommendationParams(
        request(user_id, personality=None), timeout=10
    )
    return int(answer.fallback_reason)


async def health_of(client: Client) -> int:
    answer = await client.health.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


@dataclass
class Load:
    """Callers that decide and record until they are stopped; a failed decision ends the test."""

    client: Client
    decisions: int = 0
    slowest: float = 0.0
    reasons: list[int] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    refused: int = 0

    async def decide_for(self, next_user: Callable[[int], str], *, inline: bool) -> None:
        """One caller's decisions, with the profile in the request or without it."""
        for number in range(1_000_000):
            user_id = next_user(number)
            started = time.monotonic()
            if inline:
                await self.client.recommendation.GetRecommendationParams(request(user_id))
            else:
                reason = await fallback_reason(self.client, user_id)
                if user_id == "stored":
                    assert reason == NO_MODEL, reason
                else:
                    assert reason in (NO_PROFILE, PROFILE_UNAVAILABLE), reason
                    self.reasons.append(reason)
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.decisions += 1
            await asyncio.sleep(0.005)

    async def write(self, writer: int) -> None:
        """Batches, each repeated until it is acknowledged."""
        for number in range(1_000_000):
            ids = [f"{writer}-{number}-{i}" for i in range(5)]
            while not await self._acknowledged(ids):
                await asyncio.sleep(0.05)
            self.acknowledged += ids
            await asyncio.sleep(0.005)

    async def _acknowledged(self, ids: list[str]) -> bool:
        interactions = [logged(one, f"user-{one[-1]}") for one in ids]
        try:
            answer = await record(self.client, *interactions)
        except grpc.aio.AioRpcError as failure:
            assert failure.code() == grpc.StatusCode.UNAVAILABLE, failure
            self.refused += 1
            return False
        return answer.recorded + answer.duplicates == len(ids)


async def test_postgres_stops_and_starts_under_load(
    own_postgres: OwnPostgres, own_url: str, own_client: Client
) -> None:
    await store_profile(own_url, "stored")
    assert await fallback_reason(own_client, "stored") == NO_MODEL
    load = Load(own_client)
    async with asyncio.TaskGroup() as group:
        callers = [
            group.create_task(load.decide_for(lambda _: "inline", inline=True)),
            group.create_task(load.decide_for(lambda _: "stored", inline=False)),
            group.create_task(load.decide_for(lambda n: f"unknown-{n}", inline=False)),
            group.create_task(load.write(0)),
            group.create_task(load.write(1)),
        ]

        async def more(decisions: int, acknowledged: int, refused: int, reason: int) -> None:
            before = load.decisions, len(load.acknowledged), load.refused, len(load.reasons)

            async def reached() -> bool:
                return (
                    load.decisions >= before[0] + decisions
                    and len(load.acknowledged) >= before[1] + acknowledged
                    and load.refused >= before[2] + refused
                    and reason in load.reasons[before[3] :]
                )

            await eventually(reached)

        await more(100, 50, 0, NO_PROFILE)
        for _ in range(2):
            await stop(own_postgres)
            await more(200, 0, 4, PROFILE_UNAVAILABLE)
            assert await health_of(own_client) == SERVING
            await start(own_postgres)
            await more(100, 50, 0, NO_PROFILE)
        for caller in callers:
            caller.cancel()
    assert load.slowest < 3.0

    connection = await asyncpg.connect(own_url)
    stored = [row["interaction_id"] for row in await connection.fetch("SELECT * FROM interactions")]
    assert len(stored) == len(set(stored))
    assert set(load.acknowledged) <= set(stored)
    run = await train(own_client)
    assert run.interactions_trained == len(stored)
    assert await updates_of(connection, run.model_version) == len(stored)
    await connection.close()


async def test_refusals_say_when_to_try_again(
    own_postgres: OwnPostgres, own_client: Client
) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "record": lambda: record(own_client, logged("i", "ada")),
        "put": lambda: own_client.recommendation.PutPersonalityProfiles(
            pb.PutPersonalityProfilesRequest(
                profiles=[
                    pb.UserPersonalityProfile(user_id="ada", personality=request().personality)
                ]
            )
        ),
        "trigger": lambda: trigger(own_client),
        "get run": lambda: get_run(own_client, 1),
        "list runs": lambda: own_client.training.ListTrainingRuns(
            tpb.ListTrainingRunsRequest(), metadata=ADMIN
        ),
        "watch": lambda: _first(
            own_client.training.WatchTrainingRun(
                tpb.WatchTrainingRunRequest(run_id=1), metadata=ADMIN
            )
        ),
        "cancel": lambda: own_client.training.CancelTrainingRun(
            tpb.CancelTrainingRunRequest(run_id=1), metadata=ADMIN
        ),
        "evaluate": lambda: own_client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN),
        "list models": lambda: own_client.models.ListModels(
            mpb.ListModelsRequest(), metadata=ADMIN
        ),
        "get model": lambda: own_client.models.GetModel(
            mpb.GetModelRequest(version=1), metadata=ADMIN
        ),
        "activate": lambda: own_client.models.ActivateModel(
            mpb.ActivateModelRequest(version=1), metadata=ADMIN
        ),
        "roll back": lambda: own_client.models.RollbackModel(
            mpb.RollbackModelRequest(), metadata=ADMIN
        ),
        "export": lambda: _first(
            own_client.models.ExportModel(mpb.ExportModelRequest(version=1), metadata=ADMIN)
        ),
        "import": lambda: own_client.models.ImportModel(
            iter([mpb.ImportModelRequest(chunk=b'{"q_table": {}}')]), metadata=ADMIN
        ),
    }
    await record(own_client, logged("before", "ada"))
    run = await train(own_client)
    await stop(own_postgres)
    try:
        failures = {name: await failure_of(call()) for name, call in calls.items()}
    finally:
        await start(own_postgres)
    for name, failure in failures.items():
        assert failure.code == grpc.StatusCode.UNAVAILABLE, (name, failure)
        assert failure.reason == "STORE_UNAVAILABLE", name
        assert failure.retry_seconds is not None and failure.retry_seconds > 0, name
    assert (await get_run(own_client, 1)) == run


async def _first(stream: Any) -> Any:
    return await anext(aiter(stream))


async def test_a_training_after_the_outage_is_noticed(
    own_postgres: OwnPostgres, own_url: str, own_client: Client
) -> None:
    await record(own_client, logged("i", "ada"))
    for _ in range(2):
        await stop(own_postgres)
        await start(own_postgres)
        connection = await asyncpg.connect(own_url)
        await eventually(lambda listener=connection: _someone_listens(listener))
        run = await train(own_client, mode=tpb.TRAINING_MODE_REBUILD)
        ended = time.monotonic()
        assert run.status == tpb.TRAINING_RUN_STATUS_COMPLETED

        async def serves(version: int = run.model_version) -> bool:
            answer = await own_client.recommendation.GetRecommendationParams(request())
            return bool(answer.model_version == version)

        await eventually(serves)
        assert time.monotonic() - ended < 5.0
        await connection.close()


async def _someone_listens(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            """
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND query ~ 'model_(activations|versions)' AND application_name = ''
            """
        )
    )


async def test_a_server_waits_for_its_database(
    own_postgres: OwnPostgres, own_url: str, start_server: Any
) -> None:
    await stop(own_postgres)
    try:
        server = start_server(database_url=own_url, **SMALL)
        async with connect(server.target) as client:
            assert await health_of(client) == NOT_SERVING
            failure = await failure_of(client.recommendation.GetRecommendationParams(request()))
            assert failure.code == grpc.StatusCode.UNAVAILABLE
            assert (await failure_of(trigger(client))).code == grpc.StatusCode.UNAVAILABLE
            await start(own_postgres)
            await wait_serving(client)
            assert (await record(client, logged("i", "ada"))).recorded == 1
    finally:
        await start_if_stopped(own_postgres)


async def start_if_stopped(postgres: OwnPostgres) -> None:
    try:
        connection = await asyncpg.connect(postgres.uri("postgres"))
    except OSError:
        await start(postgres)
    else:
        await connection.close()


@pytest.mark.parametrize(
    ("migrated", "lock", "waits"),
    [
        (False, "SELECT pg_advisory_xact_lock(7270000)", "advisory"),
        (True, "LOCK secrets", "relation"),
        (True, "LOCK model_activations", "relation"),
    ],
    ids=["while it migrates", "while it asks for its key", "while it loads the policy"],
)
async def test_the_database_goes_away_while_a_server_starts(
    own_postgres: OwnPostgres,
    own_url: str,
    start_server: Any,
    migrated: bool,
    lock: str,
    waits: str,
) -> None:
    if migrated:
        await migrate(own_url)
    connection = await asyncpg.connect(own_url)

    async def server_waits() -> bool:
        return bool(
            await connection.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = $1", waits
            )
        )

    async with holding(own_url, lock):
        server = start_server(database_url=own_url, **SMALL)
        await eventually(server_waits)
        await stop(own_postgres)
    await start(own_postgres)
    async with connect(server.target) as client:
        await wait_serving(client)
        assert (await record(client, logged("i", "ada"))).recorded == 1


async def test_a_trainer_loses_its_database(
    own_postgres: OwnPostgres, own_url: str, own_client: Client
) -> None:
    await record(own_client, *(logged(f"i{n}", f"user-{n % 3}") for n in range(30)))
    connection = await asyncpg.connect(own_url)
    async with holding(own_url, "LOCK users"):
        run_id = await trigger(own_client)
        await eventually(lambda: trainer_is_blocked(connection, "users"))
        await stop(own_postgres)
    await start(own_postgres)

    async def has_failed() -> bool:
        return (await get_run(own_client, run_id)).status == tpb.TRAINING_RUN_STATUS_FAILED

    await eventually(has_failed)
    run = await train(own_client)
    assert run.interactions_trained == 30
    connection = await asyncpg.connect(own_url)
    assert await connection.fetchval("SELECT count(*) FROM model_versions") == 1
    assert await updates_of(connection, run.model_version) == 30
    await connection.close()


async def test_a_database_that_hangs(
    own_postgres: OwnPostgres, own_url: str, own_client: Client
) -> None:
    """Connections stay up and nothing answers: decisions go on, and so does all after it."""
    await store_profile(own_url, "stored")
    assert await fallback_reason(own_client, "stored") == NO_MODEL
    own_postgres.freeze()
    try:
        started = time.monotonic()
        for number in range(30):
            assert await fallback_reason(own_client, f"unknown-{number}") == PROFILE_UNAVAILABLE
            assert await fallback_reason(own_client, "stored") == NO_MODEL
            await own_client.recommendation.GetRecommendationParams(request(), timeout=5)
        reactions = [
            failure_of(
                own_client.recommendation.RecordInteractions(
                    pb.RecordInteractionsRequest(interactions=[logged(f"i{n}", "ada")]), timeout=1
                )
            )
            for n in range(20)
        ]
        for failure in await asyncio.gather(*reactions):
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await fallback_reason(own_client, "nobody") == PROFILE_UNAVAILABLE
        assert time.monotonic() - started < 12
        assert await health_of(own_client) == SERVING
    finally:
        own_postgres.thaw()

    async def profiles_are_back() -> bool:
        return await fallback_reason(own_client, "somebody") == NO_PROFILE

    await eventually(profiles_are_back)
    await record(own_client, *(logged(f"i{n}", "ada") for n in range(20)))
    connection = await asyncpg.connect(own_url)
    assert await connection.fetchval("SELECT count(*) FROM interactions") == 20
    await connection.close()


async def test_health_is_told_in_time(own_postgres: OwnPostgres, own_client: Client) -> None:
    """While the database answers, while it hangs, while it is down, and after."""

    async def health() -> spb.GetSystemHealthResponse:
        started = time.monotonic()
        answer = await own_client.system.GetSystemHealth(spb.GetSystemHealthRequest(), timeout=5)
        assert time.monotonic() - started < 1.0
        return answer

    async def is_well() -> bool:
        return (await health()).database.problem == ""

    await eventually(is_well)
    own_postgres.freeze()
    try:
        for _ in range(3):
            hanging = await health()
            assert not hanging.database.answers
            assert hanging.database.problem == "no answer within 0.4 s"
            assert not hanging.HasField("queue") and not hanging.served.HasField("active_version")
    finally:
        own_postgres.thaw()
    await eventually(is_well)
    await stop(own_postgres)
    try:
        for _ in range(3):
            down = await health()
            assert not down.database.answers
            assert down.database.problem.startswith("cannot be used (")
            assert down.server.uptime_seconds > 0
    finally:
        await start(own_postgres)
    await eventually(is_well)
