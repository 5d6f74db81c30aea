"""People who are always served the rules: who they are, and what they tell of learning."""

import asyncio
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_rl.arms import HOLDBACK_SALT, position_of
from recparams_rl.evaluation.sample_ratio import MISMATCH
from recparams_server.settings import Settings
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, eventually
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    Client,
    connect,
    in_process,
    logged,
    record,
    train,
    wait_serving,
)
from tests.test_cli import run
from tests.test_metrics import scrape
from tests.trust import LIKE, SHOWN, decide, get_experiment, get_rollout, live, set_rollout

RL, RULES, PREVIOUS = pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED, pb.POLICY_ARM_PREVIOUS
PEOPLE = [f"user-{n}" for n in range(600)]
HELD_BACK = {user for user in PEOPLE if 100 * position_of(HOLDBACK_SALT, user) < 20}
HOLDING_BACK = {**SMALL, "holdback_percent": 20, "watch_seconds": 3600}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **HOLDING_BACK)


def only_the_learned(answer: pb.GetRecommendationParamsResponse) -> Sequence[Any]:
    return [SHOWN] if answer.policy_arm == RULES else [LIKE]


async def new_version(client: Client, name: str, **fields: Any) -> tpb.TrainingRun:
    await record(client, *(logged(f"{name}-{n}", f"t{n}", LIKE) for n in range(40)))
    return await train(client, **fields)


async def arms_of(client: Client, arms: set[int]) -> dict[str, int]:
    """Everybody's arm, once there are people in all these arms and no others."""

    async def asked() -> dict[str, int]:
        answers = await decide(client, PEOPLE)
        return {user: a.policy_arm for user, a in zip(PEOPLE, answers, strict=True)}

    async def settled() -> bool:
        return set((await asked()).values()) == arms

    await eventually(settled)
    # Once more: the change may have come in the middle of asking.
    return await asked()


def on_rules(arms: dict[str, int]) -> set[str]:
    return {user for user, arm in arms.items() if arm == RULES}


async def test_the_same_people_have_the_rules_through_all_rollouts(client: Client) -> None:
    first = await new_version(client, "first")
    assert on_rules(await arms_of(client, {RL, RULES})) == HELD_BACK
    rollout = (await get_rollout(client)).rollout
    assert (rollout.percent, rollout.rule_based_percent, rollout.holdback_percent) == (100, 0, 20)
    assert {arm.arm: arm.percent for arm in rollout.arms} == {RL: 80, RULES: 20}
    assert rollout.experiment_id

    second = await new_version(client, "second", activate=False)
    await set_rollout(client, version=second.model_version, percent=30)
    ramp = await arms_of(client, {RL, PREVIOUS, RULES})
    assert on_rules(ramp) == HELD_BACK
    assert sum(arm == RL for arm in ramp.values()) / 600 == pytest.approx(0.8 * 0.3, abs=0.06)

    await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert on_rules(await arms_of(client, {RL, RULES})) == HELD_BACK
    activate = mpb.ActivateModelRequest(version=second.model_version)
    await client.models.ActivateModel(activate, metadata=ADMIN)
    assert on_rules(await arms_of(client, {RL, RULES})) == HELD_BACK
    # Somebody on the rules for a comparison is not held back for good.
    await set_rollout(client, version=first.model_version, percent=70, rule_based_percent=30)

    async def more_on_rules() -> bool:
        return on_rules(await arms_of(client, {RL, RULES})) > HELD_BACK

    await eventually(more_on_rules)


async def test_while_the_rules_are_active_nobody_is_apart(client: Client) -> None:
    await new_version(client, "first")
    await client.models.ActivateModel(mpb.ActivateModelRequest(version=0), metadata=ADMIN)
    await arms_of(client, {RULES})
    answers = await decide(client, PEOPLE[:20])
    assert {answer.propensity for answer in answers} == {1.0}
    assert not (await get_rollout(client)).rollout.experiment_id


async def test_what_learning_is_worth_is_told_everywhere(start_server: Any, tmp_path: Path) -> None:
    port = free_port("127.0.0.1", 0)
    server = start_server(
        **{
            **HOLDING_BACK,
            "watch_seconds": 0.5,
            "holdback_look_seconds": 0.1,
            "experiment_burn_in": 30,
            "metrics_port": port,
        }
    )
    async with connect(server.target) as client:
        await wait_serving(client)
        health = await client.system.GetSystemHealth(spb.GetSystemHealthRequest())
        assert not health.HasField("learning_gain")
        await new_version(client, "first")
        await arms_of(client, {RL, RULES})
        await live(client, PEOPLE, only_the_learned)

        async def told() -> Any:
            health = await client.system.GetSystemHealth(spb.GetSystemHealthRequest())
            return health.learning_gain if health.HasField("learning_gain") else None

        gain = await eventually(told, 120)
        assert gain.difference == pytest.approx(1.0)
        assert gain.low <= 1 <= gain.high
        assert gain.confidence == pytest.approx(0.95)
        assert (gain.learned_users, gain.rule_based_users) == (
            len(PEOPLE) - len(HELD_BACK),
            len(HELD_BACK),
        )
        evaluated = await client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
        assert evaluated.learning_gain.difference == gain.difference

        async def shown() -> bool:
            found = await asyncio.to_thread(scrape, port)
            return found.get("recparams_learning_gain") == pytest.approx(1.0)

        await eventually(shown)
        found = await asyncio.to_thread(scrape, port)
        assert found["recparams_learning_gain_low"] == gain.low
        assert found["recparams_learning_gain_high"] == gain.high
        given = {"RECPARAMS_ADDRESS": server.target, "RECPARAMS_ADMIN_KEY": ADMIN_KEY}
        said = f"+1.0000 reward an interaction against the rules ({gain.low:+.4f} to "
        for command in (("status",), ("evaluate",), ("evaluate", "--html", "page.html")):
            outcome = await run(*command, cwd=tmp_path, **given)
            assert said in outcome.out, outcome.err
        page = html.unescape((tmp_path / "page.html").read_text())
        assert "What learning is worth" in page
        assert said in page


async def test_an_arm_that_lacks_people_is_noticed(
    start_server: Any, db: asyncpg.Connection
) -> None:
    server = start_server(**{**HOLDING_BACK, "watch_seconds": 0.5})
    async with connect(server.target) as client:
        await wait_serving(client)
        await new_version(client, "first")
        await arms_of(client, {RL, RULES})
        await live(client, PEOPLE, only_the_learned)
        fair = await get_experiment(client)
        assert fair.sample_ratio_p_value > MISMATCH
        users = {arm.arm: arm.step_users for arm in fair.arms}
        assert users == {RL: 600 - len(HELD_BACK), RULES: len(HELD_BACK)}
        # As if half of the reactions to what was learned were lost.
        await db.execute("DELETE FROM interactions WHERE policy_arm = 1 AND user_key % 2 = 0")
        assert (await get_experiment(client)).sample_ratio_p_value < MISMATCH

        async def warned() -> bool:
            return any(e["event"] == "sample ratio mismatch" for e in server.events())

        await eventually(warned)
        outcome = await run(
            *("rollout", "experiment"),
            RECPARAMS_ADDRESS=server.target,
            RECPARAMS_ADMIN_KEY=ADMIN_KEY,
        )
        assert "sample ratio mismatch" in outcome.out
