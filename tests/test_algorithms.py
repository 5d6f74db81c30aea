"""Every algorithm through the service: trained, evaluated, served, shadowed, taken back."""

from importlib.util import find_spec
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import training_pb2 as tpb
from recparams_rl.learners.registry import LEARNERS, parameters_of
from recparams_rl.policy import GreedyTable
from recparams_server.contract.vocabulary import action_index
from recparams_server.settings import Settings
from recparams_server.store import models
from tests.faults import SMALL, SPACE, eventually, get_run, trigger
from tests.support import (
    ADMIN,
    Client,
    connect,
    failure_of,
    in_process,
    request,
    train,
    wait_ended,
    wait_serving,
)
from tests.trust import LIKE, decide, likes_high_energy, live, set_rollout

DEEP = {"dqn", "actor_critic"}
ALGORITHMS = [name for name in LEARNERS if name not in DEEP or find_spec("torch")]
PEOPLE = [f"person-{n}" for n in range(300)]
REBUILD = tpb.TRAINING_MODE_REBUILD
TRAITS = np.array([[75, 60, 40, 80, 30]], dtype=np.float32)


@pytest.fixture
def settings(database_url: str, tmp_path: Any) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, "exploration": 0.3})


async def activate(client: Client, version: int) -> None:
    await client.models.ActivateModel(mpb.ActivateModelRequest(version=version), metadata=ADMIN)


async def test_every_algorithm_is_trained_evaluated_and_served(
    client: Client, db: asyncpg.Connection
) -> None:
    for _ in range(3):
        await live(client, PEOPLE, likes_high_energy)
    main = await train(client)
    assert main.algorithm == "q_learning"
    versions: dict[str, int] = {}
    for algorithm in ALGORITHMS:
        run = await train(client, mode=REBUILD, algorithm=algorithm, days_back=7)
        assert (run.status, run.error) == (tpb.TRAINING_RUN_STATUS_COMPLETED, ""), algorithm
        assert (run.algorithm, run.interactions_trained) == (algorithm, 900)
        assert set(run.hyperparameters.algorithm_parameters) == set(parameters_of(algorithm))
        assert {gate.name: gate.passed for gate in run.gates}["q_bound"]
        assert run.holdout.interactions > 0
        listed = await client.models.GetModel(
            mpb.GetModelRequest(version=run.model_version), metadata=ADMIN
        )
        assert listed.model.algorithm == algorithm
        # Only the configured algorithm goes on with the main line.
        assert listed.model.main_line == (algorithm == "q_learning")
        versions[algorithm] = run.model_version

    answer = await client.training.Evaluate(
        tpb.EvaluateRequest(
            test_days=1,
            include_trained=True,
            policies=[epb.Policy(version=version) for version in versions.values()],
        ),
        metadata=ADMIN,
    )
    assert len(answer.policies) == len(versions)
    for report in answer.policies:
        assert sum(report.action_shares) == pytest.approx(1.0, abs=1e-6)

    for algorithm, version in versions.items():
        await activate(client, version)
        policy = await models.load_policy(db, version, SPACE)
        assert isinstance(policy, LEARNERS[algorithm].policy_types)
        await _serves(client, policy, version)


async def _serves(client: Client, policy: Any, version: int) -> None:
    """Answers are of the policy, one by one and in a batch, with its propensities."""

    async def is_loaded() -> bool:
        answer = await client.recommendation.GetRecommendationParams(request())
        return bool(answer.model_version == version)

    await eventually(is_loaded)
    answers = [await client.recommendation.GetRecommendationParams(request()) for _ in range(30)]
    answers += (
        await client.recommendation.BatchGetRecommendationParams(
            pb.BatchGetRecommendationParamsRequest(
                requests=[request(f"someone-{n}") for n in range(200)]
            )
        )
    ).responses
    state = SPACE.index(TRAITS[0], SPACE.decode(_context())[1])
    dist = policy.action_dist(np.array([state], dtype=np.int32), TRAITS)[0]
    served = 0.7 * dist + 0.3 / 27
    for answer in answers:
        action = action_index(answer.action)
        assert answer.model_version == version
        assert answer.propensity == pytest.approx(served[action], rel=1e-6)
        likeliest = action == dist.argmax()
        assert likeliest == (answer.source != pb.DECISION_SOURCE_EXPLORATION)
    taken = np.bincount([action_index(answer.action) for answer in answers], minlength=27)
    expected, spread = served * len(answers), np.sqrt(len(answers) * served * (1 - served))
    assert (np.abs(taken - expected) < 5 * spread + 1).all()


def _context() -> int:
    """The index of what `request` asks for."""
    names = zip(
        (SPACE.content_types, SPACE.moods, SPACE.times_of_day),
        ("music", "calm", "evening"),
        strict=True,
    )
    return int(np.ravel_multi_index([words.index(w) for words, w in names], SPACE.context_shape))


async def test_arms_and_shadows_of_other_kinds(client: Client, db: asyncpg.Connection) -> None:
    """A table against a policy that draws: propensities are over both arms."""
    await live(client, PEOPLE, likes_high_energy)
    table = (await train(client)).model_version
    sampled = await train(client, mode=REBUILD, algorithm="lin_ts", days_back=7)
    await activate(client, table)
    await client.rollout.SetShadow(
        rpb.SetShadowRequest(version=sampled.model_version), metadata=ADMIN
    )
    await decide(client, PEOPLE)
    rollout = await set_rollout(client, version=sampled.model_version, percent=50)
    assert {share.version for share in rollout.arms} == {table, sampled.model_version}
    policies = [await models.load_policy(db, version, SPACE) for version in _versions(rollout)]
    state = np.array([SPACE.index(TRAITS[0], SPACE.decode(_context())[1])], dtype=np.int32)
    both = sum(0.5 * (0.7 * one.action_dist(state, TRAITS)[0] + 0.3 / 27) for one in policies)

    async def by_both() -> list[pb.GetRecommendationParamsResponse]:
        answers = await decide(client, PEOPLE, mood=5)
        return answers if len({answer.policy_arm for answer in answers}) == 2 else []

    await eventually(by_both)
    # Of those answers some may be of before.
    answers = await by_both()
    assert {answer.policy_arm for answer in answers} == {
        pb.POLICY_ARM_RL,
        pb.POLICY_ARM_PREVIOUS,
    }
    for answer in answers:
        assert answer.propensity == pytest.approx(both[action_index(answer.action)], rel=1e-6)


def _versions(rollout: rpb.Rollout) -> list[int]:
    return [share.version for share in rollout.arms]


@pytest.mark.parametrize("algorithm", ["lin_ts", "double_q_learning"])
async def test_a_configured_algorithm_trains_each_interaction_once(
    start_server: Any, db: asyncpg.Connection, algorithm: str
) -> None:
    """Two runs give what one over everything gives, and each watermark moves once."""
    # What follows the last interaction of a batch that is trained at once is not known then.
    server = start_server(algorithm=algorithm, discount_factor=0, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await live(client, PEOPLE[:100], lambda _: [LIKE])
        first = await train(client)
        await live(client, PEOPLE[50:], likes_high_energy)
        second = await train(client)
        assert (first.interactions_trained, second.interactions_trained) == (100, 250)
        assert second.parent_version == first.model_version
        assert second.statistics.total_updates == 350
        nothing = await train(client)
        assert (nothing.interactions_trained, nothing.model_version) == (0, 0)
        whole = await train(client, mode=REBUILD, days_back=7)
        ours, again = [
            (await models.load_learner(db, run.model_version, SPACE))[1] for run in (second, whole)
        ]
        assert ours.keys() == again.keys()
        for name, array in ours.items():
            np.testing.assert_allclose(array, again[name], rtol=1e-9, atol=1e-9)

        exported = client.models.ExportModel(
            mpb.ExportModelRequest(version=second.model_version), metadata=ADMIN
        )
        if "q" in ours:
            assert (await exported.read()).chunk
        else:
            failure = await failure_of(exported.read())
            assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
            assert failure.reason == "NO_TABLE"

    server.terminate()
    other = start_server(**SMALL)
    async with connect(other.target) as client:
        await wait_serving(client)
        failure = await failure_of(
            client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
        )
        assert failure.reason == "MODEL_INCOMPATIBLE"
        assert algorithm in failure.message


async def test_what_there_is_not_is_refused(client: Client) -> None:
    async def violations(**fields: Any) -> dict[str, str]:
        failure = await failure_of(
            client.training.TriggerTraining(tpb.TriggerTrainingRequest(**fields), metadata=ADMIN)
        )
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        return failure.violations

    def own(**values: float) -> tpb.Hyperparameters:
        return tpb.Hyperparameters(algorithm_parameters=values)

    assert (
        "must be one of q_learning"
        in (await violations(algorithm="magic", mode=REBUILD))["algorithm"]
    )
    assert "REBUILD" in (await violations(algorithm="lin_ts"))["algorithm"]
    path = "hyperparameters.algorithm_parameters"
    found = await violations(algorithm="lin_ts", mode=REBUILD, hyperparameters=own(temperature=1.0))
    assert "which has ridge, spread, draws" in found[f"{path}.temperature"]
    found = await violations(algorithm="lin_ts", mode=REBUILD, hyperparameters=own(draws=1.5))
    assert "whole" in found[f"{path}.draws"]
    cold = own(temperature=0.0)
    found = await violations(algorithm="boltzmann", mode=REBUILD, hyperparameters=cold)
    assert list(found) == [f"{path}.temperature"]
    found = await violations(hyperparameters=tpb.Hyperparameters(exploration_schedule="wild"))
    assert list(found) == ["hyperparameters.exploration_schedule"]


def test_settings_name_an_algorithm_there_is() -> None:
    good = Settings(algorithm="boltzmann", algorithm_parameters="temperature=0.2")
    assert good.hyperparameters().to_dict()["temperature"] == 0.2
    for wrong in (
        {"algorithm": "magic"},
        {"algorithm_parameters": "temperature=0.2"},
        {"algorithm": "boltzmann", "algorithm_parameters": "temperature"},
        {"algorithm": "boltzmann", "algorithm_parameters": "temperature=hot"},
        {"exploration_schedule": "wild"},
    ):
        with pytest.raises(ValueError, match=r"algorithm|parameter|schedule"):
            Settings(**wrong)


async def test_a_policy_of_an_unknown_kind_is_refused(
    client: Client, db: asyncpg.Connection
) -> None:
    await live(client, PEOPLE[:50], lambda _: [LIKE])
    run_id = await trigger(client, activate=False)
    await wait_ended(client, run_id)
    version = (await get_run(client, run_id)).model_version
    assert isinstance(await models.load_policy(db, version, SPACE), GreedyTable)
    await db.execute("UPDATE model_versions SET policy_kind = 'of the future'")
    failure = await failure_of(
        client.models.ActivateModel(mpb.ActivateModelRequest(version=version), metadata=ADMIN)
    )
    assert failure.reason == "MODEL_CORRUPT"
    assert "of the future" in failure.message
