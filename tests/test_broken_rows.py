"""Rows of versions and activations that are broken: each is named, and everything else goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
import zstandard
from structlog.testing import capture_logs

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_rl.learners.tabular import table_statistics
from recparams_rl.packing import pack
from recparams_rl.policy import LEARNED, GreedyTable
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TrainedThrough
from recparams_server.app import App
from recparams_server.background import reload as reloading
from recparams_server.background.restarting import restarting
from recparams_server.background.rollout_watch import _take_back
from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.serving.policies import PolicyHolder
from recparams_server.serving.tokens import RECORD
from recparams_server.settings import Settings
from recparams_server.store import activations, models
from recparams_server.store.training import base_version
from tests.support import (
    ADMIN,
    Client,
    Failure,
    connect,
    decode,
    failure_of,
    in_process,
    logged,
    record,
    request,
    train,
    wait_serving,
)

SPACE = StateSpace(bins=2)
CANONICAL = models.canonical(
    SPACE.to_dict() | {"serving_bins": SPACE.bins, "serving_cuts": SPACE.cuts}
)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url, tmp_path, gates="report", bins=SPACE.bins, reload_poll_seconds=0.2
    )


@dataclass(frozen=True)
class Broken:
    """How to break a row of model_versions.

    Attributes:
        sql: assignments.
        served: True if the version can be served all the same.
        said: part of the problem that is named; empty where nothing is wrong.
    """

    sql: str
    served: bool
    said: str


def flip(column: str) -> str:
    return f"{column} = set_byte({column}, 9, get_byte({column}, 9) # 1)"


def holding(column: str, content: bytes) -> str:
    """A column of this content, with the right checksum."""
    blob = zstandard.compress(content)
    return f"{column} = '\\x{blob.hex()}', {column}_checksum = '{models.checksum(CANONICAL, blob)}'"


def damaged_archive() -> bytes:
    """An archive of arrays whose compressed part is cut up."""
    whole = bytearray(pack({"samples": np.zeros(9)}))
    # The method of compression in the header of its first file, and in the directory.
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = whole.index(signature) + offset
        whole[at : at + 2] = b"\x63\x00"
    return bytes(whole)


BROKEN = {
    "metrics are a list": Broken("metrics = '[]'", False, "'NoneType'"),
    "metrics are empty": Broken("metrics = '{}'", False, "'NoneType'"),
    "statistics are missing": Broken(
        "metrics = '{\"exploration_rate\": 0.1}'", True, "bad metrics (KeyError"
    ),
    "statistics are too large": Broken(
        "metrics = metrics || '{\"avg_q_value\": 1e400}'", True, "bad metrics (OverflowError"
    ),
    "hyperparameters are text": Broken("hyperparameters = '\"x\"'", True, "bad hyperparameters"),
    "hyperparameters are out of range": Broken(
        "hyperparameters = '{\"learning_rate\": 7}'", True, "learning_rate must be"
    ),
    "objectives are a number": Broken("objectives = '7'", True, "bad objectives (TypeError"),
    "objectives are unknown": Broken("objectives = '{\"fun\": 1}'", True, "bad objectives"),
    "all metadata": Broken(
        "metrics = 'null', hyperparameters = 'null', objectives = 'null', space = 'null'",
        False,
        "bad state space",
    ),
    "space is a list": Broken("space = '[]'", False, "bad state space"),
    "space is too large": Broken("space = space || '{\"bins\": 99}'", False, "bins must be"),
    "space has a number without end": Broken(
        "space = space || ('{\"bins\": 1' || repeat('0', 5000) || '}')::jsonb",
        False,
        "model version",
    ),
    "checksums are null": Broken("q_table_checksum = NULL", True, "table fails its checksum"),
    "a damaged policy": Broken(flip("policy"), False, "policy fails its checksum"),
    "no policy": Broken("policy = ''", False, "policy fails its checksum"),
    "a policy of a wrong shape": Broken(holding("policy", bytes(7)), False, "model version"),
    "a policy of impossible actions": Broken(
        holding("policy", bytes([99]) * 2 * SPACE.n_states), False, "value of 99"
    ),
    "a policy of an unknown kind": Broken("policy_kind = 'oracle'", False, "the kind oracle"),
    "a policy of another kind": Broken(
        "policy_kind = 'sampled_linear'", False, "not packed arrays"
    ),
    "a damaged archive": Broken(
        holding("policy", damaged_archive()) + ", policy_kind = 'sampled_linear'",
        False,
        "not packed arrays",
    ),
    "an archive of wrong shapes": Broken(
        holding("policy", pack({"samples": np.zeros(9)})) + ", policy_kind = 'sampled_linear'",
        False,
        "model version",
    ),
    "a damaged table": Broken(flip("q_table"), True, "table fails its checksum"),
    "a table of a wrong shape": Broken(holding("q_table", bytes(8)), True, ""),
    "a learner of its own that is damaged": Broken(
        "learner = '\\x00', learner_checksum = ''", True, "learner fails its checksum"
    ),
    "who it was trained on is damaged": Broken("trained_through = '\\x2a'", True, ""),
    "nothing": Broken("halted_reason = ''", True, ""),
}


async def store(db: asyncpg.Connection, action: int, parent: int | None = None) -> int:
    """Stores a trained version in which every state has learned one action."""
    q = np.zeros((SPACE.n_states, 27), dtype=np.float32)
    visits = np.zeros((SPACE.n_states, 27), dtype=np.int32)
    q[:, action], visits[:, action] = 1.0, 100
    policy = GreedyTable(
        SPACE, bytes([action]) * SPACE.n_states, bytes([LEARNED]) * SPACE.n_states, 0.25
    )
    statistics = table_statistics(q, visits)
    new = models.NewModel(
        origin="trained",
        run_id=None,
        parent_version=parent,
        algorithm="q_learning",
        space=SPACE,
        hyperparameters={"learning_rate": 0.2},
        metrics={**statistics.__dict__, "exploration_rate": 0.25},
        q=q,
        visits=visits,
        rewards=q,
        policy=policy,
        objectives={"engagement": 1.0, "diversity": 0.0, "novelty": 0.0},
        main_line=True,
        trained=TrainedThrough.nothing(),
    )
    return await models.insert(db, models.encode(new))


async def activate(
    db: asyncpg.Connection, version: int, number: int | None = None, back: int | None = None
) -> int:
    """Has a version be served, past the checks of the service; returns the activation."""
    return int(
        await db.fetchval(
            """
            INSERT INTO model_activations (id, version, rollback_to) OVERRIDING SYSTEM VALUE
            SELECT
                coalesce($2, nextval(pg_get_serial_sequence('model_activations', 'id'))),
                $1,
                coalesce($3, max(id))
            FROM model_activations
            RETURNING id
            """,
            version,
            number,
            back,
        )
    )


async def break_version(db: asyncpg.Connection, version: int, how: str) -> None:
    await db.execute(f"UPDATE model_versions SET {how} WHERE version = $1", version)


async def decided_by(client: Client) -> set[int]:
    """The versions that decide, alone and in a batch."""
    answer = await client.recommendation.GetRecommendationParams(request())
    together = await client.recommendation.BatchGetRecommendationParams(
        pb.BatchGetRecommendationParamsRequest(requests=[request("a"), request("b")])
    )
    return {int(one.model_version) for one in (answer, *together.responses)}


async def until_served(client: Client, version: int) -> None:
    async with asyncio.timeout(10):
        while await decided_by(client) != {version}:
            await asyncio.sleep(0.02)


async def health(client: Client) -> spb.ServedHealth:
    async with asyncio.timeout(10):
        while True:
            found = await client.system.GetSystemHealth(spb.GetSystemHealthRequest())
            if found.served.HasField("active_version"):
                return found.served
            await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def another(settings: Settings) -> AsyncIterator[Client]:
    """A client of a server that is started now."""
    app = App(settings)
    await app.start()
    try:
        async with connect(f"127.0.0.1:{app.port}") as client:
            await wait_serving(client, 10)
            yield client
    finally:
        await app.stop()


async def outcome(call: Awaitable[Any]) -> Failure | None:
    try:
        await call
    except grpc.aio.AioRpcError as failure:
        return decode(failure)
    return None


def calls_about(client: Client, version: int) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Every call of models, rollouts and training that needs a version or shows it."""

    def call(stub: Any, name: str, message: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: getattr(stub, name)(message, metadata=ADMIN)

    exported = mpb.ExportModelRequest(version=version)
    policy = tpb.EvaluateRequest(policies=[epb.Policy(version=version)], overall_only=True)
    models_, rollout, training = client.models, client.rollout, client.training
    return {
        "ListModels": call(models_, "ListModels", mpb.ListModelsRequest()),
        "GetModel": call(models_, "GetModel", mpb.GetModelRequest(version=version)),
        "ExportModel": lambda: models_.ExportModel(exported, metadata=ADMIN).read(),
        "SetShadow": call(rollout, "SetShadow", rpb.SetShadowRequest(version=version)),
        "GetShadow": call(rollout, "GetShadow", rpb.GetShadowRequest()),
        "Evaluate": call(training, "Evaluate", policy),
        "SetRollout": call(
            rollout, "SetRollout", rpb.SetRolloutRequest(version=version, percent=50)
        ),
        "GetRollout": call(rollout, "GetRollout", rpb.GetRolloutRequest()),
        "GetExperiment": call(rollout, "GetExperiment", rpb.GetExperimentRequest()),
        "ActivateModel": call(models_, "ActivateModel", mpb.ActivateModelRequest(version=version)),
        "ListTrainingRuns": call(training, "ListTrainingRuns", tpb.ListTrainingRunsRequest()),
    }


SLOW = {"Evaluate", "GetShadow", "GetExperiment"}
SLOW_FOR = {"nothing", "statistics are missing", "who it was trained on is damaged"}
"""Each of these takes a process of its own, unless it is refused."""
NEED_POLICY = {"SetShadow", "Evaluate", "SetRollout", "ActivateModel"}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_version_is_named_and_all_else_goes_on(
    client: Client, db: asyncpg.Connection, settings: Settings, name: str
) -> None:
    broken = BROKEN[name]
    good = await store(db, 1)
    bad = await store(db, 2, good)
    await activate(db, good)
    await until_served(client, good)
    await break_version(db, bad, broken.sql)

    listed = await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)
    assert [one.version for one in listed.models] == [bad, good]
    assert listed.models[1].problem == ""
    problem = listed.models[0].problem
    assert broken.said in problem
    assert problem.startswith(f"model version {bad}: ") == bool(broken.said)
    assert listed.models[0].algorithm == "q_learning"

    for method, call in calls_about(client, bad).items():
        if broken.served and method in SLOW and name not in SLOW_FOR:
            continue
        failure = await outcome(call())
        if failure is not None and failure.code != grpc.StatusCode.NOT_FOUND:
            assert failure.code == grpc.StatusCode.FAILED_PRECONDITION, (method, failure)
            assert f"version {bad}" in failure.message, (method, failure)
            assert len(failure.message) < 1000
        if not broken.served:
            assert (failure is not None) >= (method in NEED_POLICY), method
        assert await decided_by(client) <= {good, bad}

    # Somebody serves it past all checks, and a server is started on it.
    await activate(db, bad)
    expected = bad if broken.served else good
    await until_served(client, expected)
    async with another(settings) as fresh:
        assert await decided_by(fresh) == {expected}
        served = await health(fresh)
        assert (served.active_version, served.serving_version) == (bad, expected)
        assert (f"model version {bad}" in served.refused_reason) == (not broken.served)

    back = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert back.previous_version == bad
    await client.models.ActivateModel(mpb.ActivateModelRequest(version=good), metadata=ADMIN)
    await until_served(client, good)


UNLEARNABLE = {
    "a damaged table": "FAILED_PRECONDITION",
    "space is a list": "FAILED_PRECONDITION",
    "checksums are null": "FAILED_PRECONDITION",
    "a table of a wrong shape": "a run that fails",
    "who it was trained on is damaged": "a run that fails",
    "metrics are empty": "",
    "a damaged policy": "",
}


@pytest.mark.parametrize("name", UNLEARNABLE)
async def test_training_names_a_broken_version_and_rebuilds(
    client: Client, db: asyncpg.Connection, name: str
) -> None:
    version = await store(db, 2)
    await activate(db, version)
    await break_version(db, version, BROKEN[name].sql)
    await record(client, *(logged(f"i{n}", "ada", types.REACTION_LIKE) for n in range(5)))
    named = f"model version {version}"
    if UNLEARNABLE[name] == "FAILED_PRECONDITION":
        triggered = client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
        failure = await failure_of(triggered)
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "MODEL_CORRUPT"
        assert named in failure.message
        assert "TRAINING_MODE_REBUILD" in failure.message
    else:
        run = await train(client)
        wanted = "FAILED" if UNLEARNABLE[name] else "COMPLETED"
        assert tpb.TrainingRunStatus.Name(run.status) == f"TRAINING_RUN_STATUS_{wanted}", run.error
        assert (named in run.error) == bool(UNLEARNABLE[name])
    rebuilt = await train(client, mode=tpb.TRAINING_MODE_REBUILD)
    assert rebuilt.status == tpb.TRAINING_RUN_STATUS_COMPLETED, rebuilt.error
    await until_served(client, rebuilt.model_version)


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_a_circle_of_rollbacks_ends_with_the_rules(
    client: Client, db: asyncpg.Connection, settings: Settings, length: int
) -> None:
    version = await store(db, 1)
    numbers = [await activate(db, version) for _ in range(length)]
    await until_served(client, version)
    await break_version(db, version, flip("policy"))
    await db.execute(
        "UPDATE model_activations SET rollback_to = $1 WHERE id = $2", numbers[-1], numbers[0]
    )
    newest = await activate(db, version)
    async with another(settings) as fresh:
        assert await decided_by(fresh) == {0}
        refused = (await health(fresh)).refused_reason
        assert f"model version {version}: the policy fails its checksum" in refused
        assert "is rolled back to itself: the rules are served" in refused
    # Who has it in memory goes on with it.
    assert await decided_by(client) == {version}
    back = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert (back.active_version, back.previous_version) == (0, version)
    assert await db.fetchval("SELECT max(id) FROM model_activations") == newest + 1
    await until_served(client, 0)


async def test_the_watch_takes_back_along_a_circle(db: asyncpg.Connection) -> None:
    one, two = await store(db, 1), await store(db, 2)
    await break_version(db, one, flip("policy"))
    first = await activate(db, one)
    await db.execute("UPDATE model_activations SET rollback_to = id")
    async with db.transaction():
        shares = activations.Shares(50.0, 0.0, 0.0)
        rollout = await activations.set_rollout(db, two, shares, "")
    assert (rollout.rollback_to, rollout.experiment_id) == (first, rollout.id)
    found = rpb.GetExperimentResponse(version=two, alpha=0.05)
    worse = rpb.ArmDifference(other=pb.POLICY_ARM_PREVIOUS, difference=-1.0, high=-0.5)
    with capture_logs() as logs:
        await _take_back(db, SPACE, rollout.id, found, worse)
    now = await activations.current_activation(db)
    assert (now.id, now.version) == (rollout.id + 1, 0)
    (refused,) = [entry for entry in logs if entry["event"] == "model refused"]
    assert f"model version {one}" in refused["error"]
    assert f"activation {first} is rolled back to itself" in refused["error"]


async def test_an_activation_that_no_token_has_room_for_is_passed_over(
    client: Client, db: asyncpg.Connection, settings: Settings
) -> None:
    one, two = await store(db, 1), await store(db, 2)
    await activate(db, one)
    await until_served(client, one)
    huge = await activate(db, two, LARGEST_NUMBER + 5)

    async def said() -> str:
        async with asyncio.timeout(10):
            while not (found := (await health(client)).refused_reason):
                await asyncio.sleep(0.3)
        return found

    assert f"activation {huge} is passed over" in await said()
    assert await decided_by(client) == {one}
    async with another(settings) as fresh:
        assert await decided_by(fresh) == {one}
        assert f"activation {huge}" in (await health(fresh)).refused_reason
    # What follows it counts.
    await client.models.ActivateModel(mpb.ActivateModelRequest(version=two), metadata=ADMIN)
    await until_served(client, two)
    back = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert (back.active_version, back.previous_version) == (one, two)
    await until_served(client, one)
    rollout = await client.rollout.GetRollout(rpb.GetRolloutRequest(), metadata=ADMIN)
    assert rollout.rollout.version == one

    await activate(db, two, LARGEST_NUMBER)
    await until_served(client, two)
    await db.execute(f"ALTER TABLE model_activations ALTER id RESTART WITH {LARGEST_NUMBER + 9}")
    for call in (
        client.models.ActivateModel(mpb.ActivateModelRequest(version=one), metadata=ADMIN),
        client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN),
        client.rollout.SetRollout(rpb.SetRolloutRequest(version=one, percent=50), metadata=ADMIN),
    ):
        failure = await failure_of(call)
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "ACTIVATION_NUMBER_TOO_LARGE"
    assert await decided_by(client) == {two}


def test_the_largest_number_is_the_one_that_a_token_has_room_for() -> None:
    for field in ("model_version", "activation"):
        assert np.iinfo(RECORD[field]).max == LARGEST_NUMBER


async def test_a_version_that_no_token_has_room_for_is_refused(
    client: Client, db: asyncpg.Connection, settings: Settings
) -> None:
    good = await store(db, 1)
    await activate(db, good)
    await until_served(client, good)
    for huge in (LARGEST_NUMBER + 1, (1 << 63) - 2):
        await db.execute(f"ALTER TABLE model_versions ALTER version RESTART WITH {huge}")
        assert await store(db, 2) == huge
        activating = client.models.ActivateModel(
            mpb.ActivateModelRequest(version=huge), metadata=ADMIN
        )
        failure = await failure_of(activating)
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"model version {huge}" in failure.message
        await activate(db, huge)
        listed = await client.models.ListModels(mpb.ListModelsRequest(page_size=1), metadata=ADMIN)
        assert f"model version {huge}" in listed.models[0].problem
        following = mpb.ListModelsRequest(page_token=listed.next_page_token)
        rest = await client.models.ListModels(following, metadata=ADMIN)
        assert rest.models[-1].version == good
        assert await base_version(db) == good
        async with another(settings) as fresh:
            assert await decided_by(fresh) == await decided_by(client) == {good}


async def test_what_is_refused_is_said_once_and_tried_again_later(db: asyncpg.Connection) -> None:
    one, two = await store(db, 1), await store(db, 2)
    await activate(db, one)
    holder = PolicyHolder(SPACE, 0.0)
    await reloading.reload(holder, db)
    await break_version(db, two, flip("policy"))
    number = await activate(db, two)
    await db.execute("INSERT INTO shadows (version) VALUES ($1)", two)
    with capture_logs() as logs:
        for again in (False, False, True, True):
            await reloading.reload(holder, db, again=again)
    assert [entry["event"] for entry in logs] == [
        "shadow refused",
        "model refused",
        "policy served",
    ]
    assert (holder.serving.version, holder.serving.activation) == (one, number)
    assert f"model version {two}" in holder.serving.refused

    await break_version(db, two, flip("policy"))
    await reloading.reload(holder, db)
    assert holder.serving.version == one
    await reloading.reload(holder, db, again=True)
    assert (holder.serving.version, holder.serving.refused) == (two, "")
    assert holder.serving.shadow is not None


async def test_work_that_fails_is_restarted_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def pass_time(seconds: float) -> None:
        pauses.append(seconds)

    async def work() -> None:
        if len(pauses) < 8:
            raise ValueError("broken")

    monkeypatch.setattr(asyncio, "sleep", pass_time)
    await restarting(work)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
