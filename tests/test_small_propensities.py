"""Propensities too small for any estimate: forged ones are refused, stored ones are left out."""

from pathlib import Path

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams_client.types import PersonalityProfile
from recparams_rl.evaluation.overlap import bounded_pscore, least_pscore
from recparams_rl.policy import rule_based_policy
from recparams_rl.state import StateSpace
from recparams_server.settings import Settings
from recparams_server.store import model_rows
from tests.delegating import Caller, recording, store_version
from tests.faults import SMALL
from tests.support import ADMIN, Client, failure_of, in_process, record, train
from tests.trust import DISLIKE, LIKE

HONEST = 12_778
FORGED = (1e-45, 1e-30, 5e-4) * 14
PEOPLE = [f"user-{n}" for n in range(400)]
POLICIES = [
    epb.Policy(builtin=epb.BUILTIN_POLICY_RULE_BASED),
    epb.Policy(builtin=epb.BUILTIN_POLICY_UNIFORM_RANDOM),
]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url,
        tmp_path,
        **{
            **SMALL,
            "exploration": 0.3,
            "gates": "enforce",
            "discount_factor": 0.0,
            "gate_average_reward": -1.0,
        },
    )


def honest(caller: Caller, number: int) -> pb.Interaction:
    """A reaction of somebody who likes high energy to a decision as the client library makes it."""
    user = PEOPLE[number % len(PEOPLE)]
    profile = PersonalityProfile(*np.random.default_rng(number % 400).uniform(0, 100, 5).tolist())
    one = caller.decider.decide(user, profile, "music", "calm", "evening")
    return pb.Interaction(
        interaction_id=f"honest-{number}",
        user_id=user,
        decision_token=one.decision_token,
        reactions=[LIKE if one.recommendation.energy == "high" else DISLIKE],
    )


async def evaluate(client: Client) -> tpb.EvaluateResponse:
    asked = tpb.EvaluateRequest(policies=POLICIES)
    return await client.training.Evaluate(asked, metadata=ADMIN)


def values(answer: tpb.EvaluateResponse) -> list[float]:
    """The doubly robust estimate of each policy; every estimator has to give a number."""
    for policy in answer.policies:
        for one in policy.estimates:
            assert one.HasField("value"), (policy.name, one.estimator, one.reason)
    return [
        one.value for policy in answer.policies for one in policy.estimates if one.estimator == "dr"
    ]


async def test_forged_propensities_neither_get_in_nor_break_what_is_there(
    client: Client, db: asyncpg.Connection
) -> None:
    caller = await Caller.following(client)
    interactions = [honest(caller, number) for number in range(HONEST)]
    forged = [caller.interaction(f"forger-{n % 5}", propensity=one) for n, one in enumerate(FORGED)]
    for first in range(0, len(forged), 14):
        batch = (*interactions[:500], *forged[first : first + 14])
        failure = await failure_of(recording(client, *batch))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        named = [f"interactions[{500 + n}].decision_token" for n in range(14)]
        assert list(failure.violations) == named
    assert await db.fetchval("SELECT count(*) FROM interactions") == 0
    assert (await record(client, *interactions)).recorded == HONEST

    clean = await evaluate(client)
    assert (clean.interactions, clean.unknown_propensity) == (HONEST, 0)
    assert clean.evaluated == HONEST
    before = values(clean)

    # As a server stored them that believed every caller.
    await db.execute(
        """
        UPDATE interactions SET propensity = forged.propensity
        FROM unnest($1::text[], $2::real[]) AS forged (interaction_id, propensity)
        WHERE interactions.interaction_id = forged.interaction_id
        """,
        [f"honest-{300 * n}" for n in range(len(FORGED))],
        FORGED,
    )
    answer = await evaluate(client)
    assert values(answer) == pytest.approx(before, abs=0.02)
    assert (answer.interactions, answer.unknown_propensity) == (HONEST, len(FORGED))
    assert answer.evaluated == HONEST - len(FORGED)

    run = await train(client)
    gates = {gate.name: gate for gate in run.gates}
    assert gates["improvement"].HasField("value"), gates
    # The later half of all is held out, and with it about the later half of these.
    assert len(FORGED) / 3 < run.holdout.unknown_propensity < len(FORGED)


async def test_the_bound_follows_what_versions_explore(db: asyncpg.Connection) -> None:
    assert await model_rows.least_exploration(db) is None
    for epsilon in (0.0, 0.05, 0.2):
        await store_version(db, rule_based_policy(StateSpace(bins=2), epsilon))
    assert await model_rows.least_exploration(db) == 0.05


def test_the_least_propensity_is_half_of_what_exploration_gives() -> None:
    bounds: list[tuple[float, float]] = [
        (0.0, 1e-3),
        (1.0, 1e-3),
        (0.05, 0.05 / 54),
        (0.01, 0.01 / 54),
        (1e-12, 1e-5),
    ]
    for epsilon, least in bounds:
        assert least_pscore(epsilon) == pytest.approx(least)


def test_what_lies_below_a_bound_is_not_known() -> None:
    given = np.array([1e-45, 1e-30, 5e-4, 1e-3, 0.5, np.nan], np.float32)
    found = bounded_pscore(given, 1e-3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False, False, True])
    np.testing.assert_array_equal(found[3:5], given[3:5])
