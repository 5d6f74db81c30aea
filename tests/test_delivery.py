"""Rollouts that move by themselves, against real servers: steps, turns, harm and replicas."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_rl.evaluation.rollout import Move
from recparams_server.background.rollout_steps import take_step
from recparams_server.settings import Settings
from recparams_server.store import activations
from tests.faults import SMALL, eventually
from tests.support import (
    ADMIN,
    Client,
    ServerProcess,
    connect,
    in_process,
    logged,
    record,
    train,
    wait_serving,
)
from tests.trust import LIKE, decide, get_rollout, live, set_rollout

RL = pb.POLICY_ARM_RL
PEOPLE = [f"user-{n}" for n in range(600)]
STARTED, WAITING, SUPERSEDED = (
    tpb.TRAINING_OUTCOME_STARTED,
    tpb.TRAINING_OUTCOME_WAITING,
    tpb.TRAINING_OUTCOME_SUPERSEDED,
)
AUTO = {
    **SMALL,
    "rollout": "auto",
    "rollout_steps": "some=20,half=50,all=100",
    "rollout_step_seconds": 1,
    "rollout_step_people": 30,
    "experiment_burn_in": 30,
    "watch_seconds": 0.2,
}
PATIENT = {**AUTO, "rollout_step_seconds": 3600, "rollout_patience_seconds": 7200}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL, watch_seconds=3600)


def everybody_likes_it(_: pb.GetRecommendationParamsResponse) -> Sequence[Any]:
    return [LIKE]


def nobody_likes_the_new(answer: pb.GetRecommendationParamsResponse) -> Sequence[Any]:
    return [types.REACTION_DISLIKE] if answer.policy_arm == RL else [LIKE]


async def new_version(client: Client) -> tpb.TrainingRun:
    """Trains something, so that there is a version to roll out."""
    name = f"i{(await get_rollout(client)).rollout.version}-{len(await runs(client))}"
    await record(client, *(logged(f"{name}-{n}", f"t{n}", LIKE) for n in range(40)))
    return await train(client)


async def runs(client: Client) -> Sequence[tpb.TrainingRun]:
    """All runs, newest first."""
    answer = await client.training.ListTrainingRuns(tpb.ListTrainingRunsRequest(), metadata=ADMIN)
    found: Sequence[tpb.TrainingRun] = answer.runs
    return found


async def outcome_of(client: Client, run: tpb.TrainingRun) -> int:
    """What became of the version of a run, as of now."""
    request = tpb.GetTrainingRunRequest(run_id=run.run_id)
    answer = await client.training.GetTrainingRun(request, metadata=ADMIN)
    return int(answer.run.outcome)


@contextlib.asynccontextmanager
async def serving(*servers: ServerProcess) -> AsyncIterator[Client]:
    """A client of the first of some servers, when all of them serve."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(one.target)) for one in servers]
        for client in clients:
            await wait_serving(client)
        yield clients[0]


async def steps(db: asyncpg.Connection, version: int) -> list[float]:
    """The shares that a version was given, in order."""
    rows = await db.fetch(
        "SELECT percent FROM model_activations WHERE version = $1 ORDER BY id", version
    )
    return [row["percent"] for row in rows]


async def reaches(
    client: Client, react: Any, version: int, percent: float, seconds: float = 180.0
) -> None:
    """People use the service now and then until a version is served to so many of them."""
    deadline = time.monotonic() + seconds
    while True:
        await live(client, PEOPLE, react)
        for _ in range(20):
            rollout = (await get_rollout(client)).rollout
            if (rollout.version, rollout.percent) == (version, percent):
                return
            await asyncio.sleep(0.2)
        assert time.monotonic() < deadline, rollout


async def test_a_version_is_rolled_out_step_by_step_and_the_next_takes_its_turn(
    start_server: Any, db: asyncpg.Connection
) -> None:
    """On two replicas, of which one moves each step once."""
    servers = [start_server(**AUTO) for _ in range(2)]
    async with serving(*servers) as client:
        first = await new_version(client)
        assert (first.outcome, first.served_percent) == (STARTED, 20)
        assert (await get_rollout(client)).rollout.automatic
        second = await new_version(client)
        assert second.outcome == WAITING
        third = await new_version(client)
        assert third.outcome == WAITING
        assert await outcome_of(client, second) == SUPERSEDED
        assert (await get_rollout(client)).rollout.waiting_version == third.model_version
        await reaches(client, everybody_likes_it, third.model_version, 20)
        assert await steps(db, first.model_version) == [20, 50, 100]
        assert await steps(db, second.model_version) == []
        assert await outcome_of(client, third) == STARTED
        history = (await get_rollout(client)).history
        assert history[0].reason.startswith("next step: at most")
        assert all(one.automatic for one in history)
        assert await db.fetchval("SELECT count(*) FROM system_tasks WHERE outcome = 'waiting'") == 0
    moves = [e for s in servers for e in s.events() if e["event"] == "rollout moved on"]
    assert len(moves) == 2


async def test_harm_is_taken_back_and_the_next_takes_its_turn(
    start_server: Any, db: asyncpg.Connection
) -> None:
    async with serving(start_server(**PATIENT)) as client:
        bad = await new_version(client)
        waiting = await new_version(client)
        assert waiting.outcome == WAITING

        await wait_for_arms(client)
        await reaches(client, nobody_likes_the_new, waiting.model_version, 20)
        assert await steps(db, bad.model_version) == [20]
        halted = "SELECT halted_at IS NOT NULL FROM model_versions WHERE version = $1"
        assert await db.fetchval(halted, bad.model_version)


async def test_a_step_needs_its_time(start_server: Any, db: asyncpg.Connection) -> None:
    async with serving(start_server(**PATIENT)) as client:
        run = await new_version(client)
        await wait_for_arms(client)
        for _ in range(3):
            await live(client, PEOPLE, everybody_likes_it)
        looked = await db.fetchval("SELECT now()")
        await eventually(lambda: later(db, looked, 3))
        assert await steps(db, run.model_version) == [20]
        # As if it had stood there for long: now it moves, and a newer one waits no longer for it.
        await db.execute("UPDATE model_activations SET activated_at = now() - interval '2 hours'")
        await reaches(client, everybody_likes_it, run.model_version, 50)


async def test_a_newer_version_takes_the_place_of_one_that_stays_at_its_first_step(
    start_server: Any, db: asyncpg.Connection
) -> None:
    """Nobody comes, so nothing can be told."""
    async with serving(start_server(**PATIENT)) as client:
        first = await new_version(client)
        second = await new_version(client)
        assert second.outcome == WAITING
        await db.execute("UPDATE model_activations SET activated_at = now() - interval '3 hours'")

        async def taken() -> bool:
            return (await get_rollout(client)).rollout.version == second.model_version

        await eventually(taken, 180)
        rollout = (await get_rollout(client)).rollout
        assert (rollout.percent, rollout.baseline_version) == (20, 0)
        assert await steps(db, first.model_version) == [20]
        await db.execute("UPDATE model_activations SET activated_at = now() - interval '3 hours'")
        third = await new_version(client)
        assert third.outcome == STARTED
        assert (await get_rollout(client)).rollout.version == third.model_version


async def test_who_says_what_to_serve_is_not_overruled(
    start_server: Any, db: asyncpg.Connection
) -> None:
    async with serving(start_server(**AUTO)) as client:
        first = await new_version(client)
        # A share that is no step stays where it was put.
        await set_rollout(client, version=first.model_version, percent=30)
        for _ in range(3):
            await live(client, PEOPLE, everybody_likes_it)
        second = await new_version(client)
        assert second.outcome == WAITING
        await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
        assert await outcome_of(client, second) == SUPERSEDED
        looked = await db.fetchval("SELECT now()")
        await eventually(lambda: later(db, looked, 2))
        assert (await get_rollout(client)).rollout.version == 0
        assert await steps(db, first.model_version) == [20, 30]


async def test_a_step_is_taken_once_however_many_would(
    client: Client, db: asyncpg.Connection, database_url: str, settings: Settings
) -> None:
    run = await new_version(client)
    await set_rollout(client, version=run.model_version, percent=10)
    current = await activations.current_activation(db)
    move = Move("advance", 50.0, "it is time")
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await asyncpg.connect(database_url) for _ in range(4)]
        for replica in replicas:
            stack.push_async_callback(replica.close)
        await asyncio.gather(*(take_step(one, settings, current, move) for one in replicas))
    assert await steps(db, run.model_version) == [100, 10, 50]


async def later(db: asyncpg.Connection, since: Any, seconds: float) -> bool:
    """True once some seconds have passed."""
    sql = "SELECT now() - $1 > make_interval(secs => $2)"
    return bool(await db.fetchval(sql, since, float(seconds)))


async def wait_for_arms(client: Client) -> None:
    """Returns when people are in different arms."""

    async def apart() -> bool:
        return len({answer.policy_arm for answer in await decide(client, PEOPLE)}) > 1

    await eventually(apart)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout_patience_seconds": 1}, "patience_seconds must be step_seconds or more"),
        ({"rollout_steps": "a=50,b=10"}, "rise from above 0 to 100"),
    ],
)
def test_rules_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**settings)
