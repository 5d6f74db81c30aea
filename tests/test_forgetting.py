"""DeleteUserData: one person's data goes, whatever goes on meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_server.app import App
from recparams_server.jobs.forked import Template
from recparams_server.settings import Settings
from tests.faults import SMALL, batch, eventually, holding
from tests.support import (
    ADMIN,
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
from tests.test_cli import run
from tests.test_exactly_once import POINTS, stopped_at

NO_PROFILE = pb.FALLBACK_REASON_NO_PROFILE
NO_MODEL = pb.FALLBACK_REASON_NO_MODEL


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
async def other(settings: Settings, client: Client, template: Template) -> AsyncIterator[Client]:
    """A client of a second server on the database of `client`."""
    app = App(settings, template=template)
    await app.start()
    async with connect(f"127.0.0.1:{app.port}") as connected:
        await wait_serving(connected)
        yield connected
    await app.stop()


async def forget(client: Client, user_id: str) -> spb.DeleteUserDataResponse:
    return await client.system.DeleteUserData(
        spb.DeleteUserDataRequest(user_id=user_id), metadata=ADMIN
    )


async def put_profiles(client: Client, *user_ids: str) -> None:
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(
            profiles=[
                pb.UserPersonalityProfile(user_id=user_id, personality=SEED_PERSONALITY)
                for user_id in user_ids
            ]
        )
    )


async def fallback_reason(client: Client, user_id: str) -> int:
    """What a decision says that rests on the stored profile."""
    answer = await client.recommendation.GetRecommendationParams(request(user_id, personality=None))
    return int(answer.fallback_reason)


async def stored(db: asyncpg.Connection) -> dict[str, int]:
    """Rows of each table that knows people, and interactions that have lost theirs."""
    row = await db.fetchrow(
        """
        SELECT (SELECT count(*) FROM users) AS users,
            (SELECT count(*) FROM personality_profiles) AS profiles,
            (SELECT count(*) FROM interactions) AS interactions,
            (SELECT count(*) FROM interaction_keys) AS keys,
            (SELECT count(*) FROM interactions LEFT JOIN users USING (user_key)
                WHERE user_id IS NULL) AS orphans
        """
    )
    assert row is not None
    return dict(row)


def of(user_id: str, count: int, prefix: str = "") -> list[pb.Interaction]:
    """Interactions over some weeks, each in another partition than the one before."""
    now = datetime.now(UTC)
    return [
        logged(f"{prefix}{user_id}-{n}", user_id, occurred_at=now - timedelta(weeks=n, hours=1))
        for n in range(count)
    ]


async def test_one_goes_and_the_others_stay(client: Client, db: asyncpg.Connection) -> None:
    await record(client, *of("ada", 5), *of("bob", 3))
    await put_profiles(client, "ada", "bob")
    counts = {"interactions": 5, "interaction_keys": 5, "profiles": 1, "users": 1}
    assert await forget(client, "ada") == spb.DeleteUserDataResponse(**counts)
    bobs = {"users": 1, "profiles": 1, "interactions": 3, "keys": 3, "orphans": 0}
    assert await stored(db) == bobs
    assert await db.fetchval("SELECT user_id FROM users") == "bob"
    for unknown in ("ada", "nobody"):
        assert await forget(client, unknown) == spb.DeleteUserDataResponse()
    assert await stored(db) == bobs


async def test_it_needs_the_key_and_a_name(client: Client, db: asyncpg.Connection) -> None:
    await record(client, logged("i", "ada"))
    ada = spb.DeleteUserDataRequest(user_id="ada")
    missing = await failure_of(client.system.DeleteUserData(ada))
    assert missing.code == grpc.StatusCode.UNAUTHENTICATED
    for name in ("", "x" * 129, "a\0b"):
        failure = await failure_of(forget(client, name))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert set(failure.violations) == {"user_id"}
    assert (await stored(db))["users"] == 1


async def test_replicas_forget_the_profile(client: Client, other: Client) -> None:
    await put_profiles(client, "ada")
    for one in (client, other):
        assert await fallback_reason(one, "ada") == NO_MODEL
    await forget(client, "ada")
    assert await fallback_reason(client, "ada") == NO_PROFILE

    async def other_knows() -> bool:
        return await fallback_reason(other, "ada") == NO_PROFILE

    await eventually(other_knows, 5)


async def test_what_was_learned_remains_and_a_late_token_makes_the_person_anew(
    client: Client, db: asyncpg.Connection
) -> None:
    decision = await client.recommendation.GetRecommendationParams(request("ada"))
    late = pb.Interaction(
        interaction_id="late",
        user_id="ada",
        decision_token=decision.decision_token,
        completion_rate=1,
    )
    await record(client, *of("ada", 3), late)
    before = await train(client, days_back=100)
    assert before.interactions_trained == 4
    key = await db.fetchval("SELECT user_key FROM users")
    assert (await forget(client, "ada")).interactions == 4

    assert (await record(client, late)).recorded == 1
    assert await db.fetchval("SELECT user_key FROM users") > key
    after = await train(client, days_back=100)
    assert (after.parent_version, after.interactions_trained) == (before.model_version, 1)
    assert after.statistics.total_updates == 5


@pytest.mark.parametrize("point", ["at writing the version", "at writing the watermarks"])
async def test_a_run_under_way(
    client: Client, db: asyncpg.Connection, database_url: str, point: str
) -> None:
    await record(client, *batch(0))
    async with stopped_at(POINTS[point], client, db, database_url) as run_id:
        forgetting = [asyncio.create_task(forget(client, f"user-{n}")) for n in (3, 5)]
        await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            await client.recommendation.GetRecommendationParams(request("user-5"))
    trained = await wait_ended(client, run_id)
    assert trained.status == tpb.TRAINING_RUN_STATUS_COMPLETED, trained.error
    for done in await asyncio.gather(*forgetting):
        assert done.users == 1 and done.interactions > 0
    assert (await stored(db))["orphans"] == 0


async def test_it_waits_for_inserts_under_way(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    """The insert saw the person before they were deleted, and commits after."""
    await record(client, *of("ada", 1))
    insert = """
        INSERT INTO interactions (occurred_at, user_key, interaction_id, content_type, mood,
            time_of_day, action, reactions)
        SELECT now(), user_key, 'slow', 1, 1, 1, 5, 1 FROM users;
        INSERT INTO interaction_keys VALUES (interaction_key('slow'), now())
    """
    async with holding(database_url, insert) as inserting:
        forgetting = asyncio.create_task(forget(client, "ada"))
        await asyncio.sleep(0.3)
        assert not forgetting.done()
        # Others record meanwhile.
        async with asyncio.timeout(30):
            await record(client, *of("bob", 1))
        await inserting.execute("commit")
        assert (await forgetting).interactions == 2
    assert await stored(db) == {
        "users": 1, "profiles": 0, "interactions": 1, "keys": 1, "orphans": 0,
    }  # fmt: skip


async def test_everything_at_once(client: Client, other: Client, db: asyncpg.Connection) -> None:
    """Writers, a trainer and whoever forgets get in each other's way as much as they can."""
    over = False
    people = ("ada", "bob")

    async def write(writer: Client, name: str) -> int:
        number = 0
        while not over:
            number += 1
            without_profile = logged(f"{name}-{number}", people[number % 2])
            without_profile.logged_decision.ClearField("personality")
            answer = await record(writer, without_profile, *of("bob", 2, f"{name}-{number}"))
            assert answer.recorded == 3
            await put_profiles(writer, *people)
        return number

    async def forget_again(forgetter: Client) -> int:
        gone = 0
        while not over:
            gone += (await forget(forgetter, people[gone % 2])).users
        return gone

    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(write(one, f"w{n}")) for n, one in enumerate((client, other))]
        forgetters = [group.create_task(forget_again(one)) for one in (client, other)]
        trained = await train(client)
        assert trained.status == tpb.TRAINING_RUN_STATUS_COMPLETED, trained.error
        over = True
    assert min(task.result() for task in [*writers, *forgetters]) > 1
    for user_id in people:
        await forget(client, user_id)
    assert set((await stored(db)).values()) == {0}


async def test_the_command_line(client: Client, app: App) -> None:
    await record(client, *of("ada", 3))
    variables: dict[str, Any] = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}"}
    asked = await run("forget", "ada", **variables)
    assert (asked.code, asked.out) == (1, "")
    assert "Delete everything stored about ada?" in asked.err
    done = await run("forget", "ada", "--yes", **variables)
    assert (done.code, done.out) == (0, "deleted ada: 3 interactions, 0 profiles\n")
    again = await run("forget", "ada", "--yes", **variables)
    assert (again.code, again.out) == (0, "nothing is stored about ada\n")
    answer = await run("forget", "ada", "--yes", "--json", **variables)
    assert answer.json["users"] == 0
    wrong = await run("forget", "ada", "--yes", "--admin-key", "nonsense", **variables)
    assert wrong.code == 7
