"""Rollouts over a real channel: sticky, monotone, exact propensities, experiments, the watch."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import types_pb2 as types
from recparams_server.settings import Settings
from tests.faults import SMALL, eventually, train_here
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
    wait_serving,
)
from tests.trust import (
    LIKE,
    SHOWN,
    arm_counts,
    decide,
    get_experiment,
    get_rollout,
    likes_high_energy,
    live,
    serves,
    set_rollout,
)

RL, RULES, PREVIOUS = (
    pb.POLICY_ARM_RL,
    pb.POLICY_ARM_RULE_BASED,
    pb.POLICY_ARM_PREVIOUS,
)
PEOPLE = [f"user-{n}" for n in range(600)]
WATCHED = {**SMALL, "watch_seconds": 0.2, "experiment_burn_in": 30}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, "watch_seconds": 3600})


Versions = Callable[[Client, int], Awaitable[list[int]]]


@pytest.fixture
def versions(db: asyncpg.Connection, settings: Settings) -> Versions:
    """Trains so many versions, none of them served. They like different actions."""

    async def train(client: Client, count: int) -> list[int]:
        found = []
        for number in range(count):
            action = (1, 1, 1 + number % 3)
            await record(
                client, *(logged(f"{number}-{n}", f"t{n}", LIKE, action=action) for n in range(40))
            )
            found.append(await train_here(db, settings, activate=False))
        return found

    return train


async def test_before_anything_the_rules_are_served(client: Client) -> None:
    answer = await get_rollout(client)
    assert answer.rollout.version == 0
    assert [(arm.arm, arm.percent) for arm in answer.rollout.arms] == [(RULES, 100)]
    assert [(s.name, s.percent) for s in answer.rollout.steps] == [
        ("canary", 10),
        ("half", 50),
        ("full", 100),
    ]
    assert not answer.history


async def test_a_ramp_is_sticky_and_monotone(client: Client, versions: Versions) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    await serves(client, PEOPLE)
    before: set[str] = set()
    for step, percent in (("canary", 10), ("half", 50), ("next", 100)):
        rollout = await set_rollout(client, version=two, step=step, reason=f"to {step}")
        assert (rollout.version, rollout.baseline_version) == (two, one)
        assert rollout.percent == percent
        await serves(client, PEOPLE)
        answers = await decide(client, PEOPLE)
        again = await decide(client, PEOPLE)
        assert [a.policy_arm for a in answers] == [a.policy_arm for a in again]
        inside = {user for user, a in zip(PEOPLE, answers, strict=True) if a.policy_arm == RL}
        assert before <= inside
        assert len(inside) / len(PEOPLE) == pytest.approx(percent / 100, abs=0.07)
        for answer in answers:
            assert answer.model_version == (two if answer.policy_arm == RL else one)
        before = inside
    assert (await get_rollout(client)).rollout.experiment_id == 0
    history = (await get_rollout(client)).history
    assert [h.percent for h in history] == [50, 10, 100]
    assert history[0].reason == "to half"


async def test_two_replicas_agree_on_everybody(start_server: Any, versions: Versions) -> None:
    servers = [start_server(**{**SMALL, "watch_seconds": 3600}) for _ in range(2)]
    async with connect(servers[0].target) as first, connect(servers[1].target) as second:
        for client in (first, second):
            await wait_serving(client)
        one, two = await versions(first, 2)
        await set_rollout(first, version=one, percent=100)
        await set_rollout(second, version=two, percent=30, rule_based_percent=20)
        for client in (first, second):
            await serves(client, PEOPLE)
        mine, theirs = await decide(first, PEOPLE), await decide(second, PEOPLE)
        assert [a.policy_arm for a in mine] == [a.policy_arm for a in theirs]
        counts = arm_counts(mine)
        assert set(counts) == {RL, PREVIOUS, RULES}
        for arm, share in ((RL, 0.3), (PREVIOUS, 0.5), (RULES, 0.2)):
            assert counts[arm] / len(PEOPLE) == pytest.approx(share, abs=0.07)


class TestPropensities:
    """The mixture of arms and exploration, against what happens."""

    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return in_process(
            database_url,
            tmp_path,
            exploration=0.3,
            holdback_percent=10,
            **{**SMALL, "watch_seconds": 3600},
        )

    async def test_they_are_the_frequencies_of_actions(
        self, client: Client, versions: Versions
    ) -> None:
        one, two = await versions(client, 2)
        await set_rollout(client, version=one, percent=100)
        await set_rollout(client, version=two, percent=40, rule_based_percent=15)
        await serves(client, PEOPLE)
        people = [f"somebody-{n}" for n in range(12_000)]
        answers = await decide(client, people, mood=types.MOOD_CALM)
        stated: dict[bytes, float] = {}
        counted: Counter[bytes] = Counter()
        for answer in answers:
            key = answer.action.SerializeToString(deterministic=True)
            assert stated.setdefault(key, answer.propensity) == answer.propensity
            counted[key] += 1
        assert sum(stated.values()) == pytest.approx(1)
        assert len(stated) == 27
        for key, chance in stated.items():
            spread = (chance * (1 - chance) / len(people)) ** 0.5
            assert counted[key] / len(people) == pytest.approx(chance, abs=5 * spread)


async def test_people_without_a_profile_have_an_arm_too(
    client: Client, db: asyncpg.Connection, versions: Versions
) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    await set_rollout(client, version=two, percent=50)
    await serves(client, PEOPLE)
    known = await decide(client, PEOPLE)
    unknown = await live(client, PEOPLE, lambda _: [LIKE], personality=None)
    assert [a.policy_arm for a in unknown] == [a.policy_arm for a in known]
    assert {a.source for a in unknown} == {pb.DECISION_SOURCE_RULE_BASED}
    experiment = (await get_rollout(client)).rollout.experiment_id
    rows = await db.fetch(
        "SELECT policy_arm, experiment_id, count(*) FROM interactions_named "
        "WHERE decision_id IS NOT NULL GROUP BY 1, 2"
    )
    assert {(row[0], row[1]) for row in rows} == {("rl", experiment), ("previous", experiment)}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"percent": -1}, "percent"),
        ({"percent": 100.5}, "percent"),
        ({"percent": float("nan")}, "percent"),
        ({"step": "most"}, "step"),
        ({"percent": 60, "rule_based_percent": 50}, "percent"),
        ({"percent": 1, "rule_based_percent": -3}, "rule_based_percent"),
        ({"percent": 1, "reason": "x" * 501}, "reason"),
    ],
)
async def test_bad_rollouts_change_nothing(
    client: Client, fields: dict[str, Any], field: str, versions: Versions
) -> None:
    (version,) = await versions(client, 1)
    before = await get_rollout(client)
    failure = await failure_of(set_rollout(client, version=version, **fields))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert field in failure.violations
    assert await get_rollout(client) == before


async def test_what_is_not_there_cannot_be_rolled_out(client: Client) -> None:
    failure = await failure_of(set_rollout(client, version=99, percent=10))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    failure = await failure_of(set_rollout(client, percent=10))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_ROLLOUT")
    failure = await failure_of(get_experiment(client))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    failure = await failure_of(get_experiment(client, 5))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    shadow = client.rollout.GetShadow(rpb.GetShadowRequest(), metadata=ADMIN)
    assert (await failure_of(shadow)).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("SetRollout", rpb.SetRolloutRequest()),
        ("GetRollout", rpb.GetRolloutRequest()),
        ("GetExperiment", rpb.GetExperimentRequest()),
        ("SetShadow", rpb.SetShadowRequest()),
        ("GetShadow", rpb.GetShadowRequest()),
    ],
)
async def test_every_call_needs_the_key(client: Client, method: str, message: Any) -> None:
    failure = await failure_of(getattr(client.rollout, method)(message))
    assert failure.code == grpc.StatusCode.UNAUTHENTICATED


async def test_a_rollback_ends_a_ramp(client: Client, versions: Versions) -> None:
    one, two, three = await versions(client, 3)
    await set_rollout(client, version=one, percent=100)
    await set_rollout(client, version=two, percent=10)
    await set_rollout(client, version=two, percent=50)
    rolled = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert (rolled.active_version, rolled.previous_version) == (one, two)
    rollout = (await get_rollout(client)).rollout
    assert [(arm.version, arm.percent) for arm in rollout.arms] == [(one, 100)]
    # Another version in the middle of a ramp goes against what was settled before it.
    await set_rollout(client, version=two, percent=50)
    rollout = await set_rollout(client, version=three, percent=20)
    assert (rollout.version, rollout.baseline_version) == (three, one)
    rolled = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert rolled.active_version == one


async def test_an_abandoned_ramp_leaves_no_step_behind(client: Client, versions: Versions) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    for abandon in (
        lambda: set_rollout(client, version=one, percent=100),
        lambda: client.models.ActivateModel(mpb.ActivateModelRequest(version=one), metadata=ADMIN),
    ):
        await set_rollout(client, version=two, percent=10)
        await abandon()
        rollout = (await get_rollout(client)).rollout
        assert (rollout.version, rollout.percent, rollout.baseline_version) == (one, 100, 0)
    rolled = await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert (rolled.active_version, rolled.previous_version) == (0, one)


async def test_other_arms_are_another_experiment(client: Client, versions: Versions) -> None:
    """An arm must not be held to what others did while it had nobody."""
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    numbers = [
        (await set_rollout(client, version=two, **shares)).experiment_id
        for shares in (
            {"percent": 10},
            {"percent": 50},
            {"percent": 50, "rule_based_percent": 5},
            {"percent": 95},
            {"percent": 90},
        )
    ]
    assert numbers[0] == numbers[1]
    assert len(set(numbers)) == 4
    await serves(client, PEOPLE)
    people = (await decide(client, PEOPLE), await decide(client, PEOPLE))
    assert [a.policy_arm for a in people[0]] == [a.policy_arm for a in people[1]]


async def test_every_arm_must_be_servable(
    client: Client, db: asyncpg.Connection, versions: Versions
) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    await serves(client, PEOPLE)
    await db.execute("UPDATE model_versions SET policy_checksum = '' WHERE version = $1", one)
    before = await get_rollout(client)
    failure = await failure_of(set_rollout(client, version=two, percent=10))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_CORRUPT")
    assert await get_rollout(client) == before
    await set_rollout(client, version=two, percent=100)
    rollback = client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert (await failure_of(rollback)).reason == "MODEL_CORRUPT"
    assert (await get_rollout(client)).rollout.version == two


async def test_an_experiment_counts_people_and_reactions(
    client: Client, versions: Versions
) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    started = await set_rollout(client, version=two, percent=50)
    await serves(client, PEOPLE)
    answers = []
    for _ in range(2):
        answers += await live(client, PEOPLE, lambda a: [LIKE if a.policy_arm == RL else SHOWN])
    found = await get_experiment(client)
    assert found.experiment_id == started.experiment_id
    assert (found.version, found.baseline_version) == (two, one)
    assert not found.HasField("ended_at")
    arms = {arm.arm: arm for arm in found.arms}
    counts = arm_counts(answers)
    assert set(arms) == {RL, PREVIOUS}
    for number, arm in arms.items():
        assert (arm.interactions, arm.users) == (counts[number], counts[number] // 2)
        assert arm.average_reward == arm.like_rate == (1.0 if number == RL else 0.0)
    (difference,) = found.differences
    assert (difference.other, difference.difference) == (PREVIOUS, 1.0)
    assert difference.verdict == rpb.VERDICT_BETTER
    assert 0 < difference.low <= 1 <= difference.high

    await set_rollout(client, percent=100)
    ended = await get_experiment(client, found.experiment_id)
    assert ended.HasField("ended_at")
    assert list(ended.arms) == list(found.arms)


async def test_a_good_week_does_not_count_for_the_arm_that_was_large_in_it(
    client: Client, versions: Versions
) -> None:
    """At 10 % everybody is unhappy, at 90 % everybody is happy: the arms are alike."""
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    for percent, reaction in ((10, types.REACTION_DISLIKE), (90, LIKE)):
        await set_rollout(client, version=two, percent=percent)
        await serves(client, PEOPLE)
        await live(client, [f"u{n}" for n in range(3000)], lambda _, r=reaction: [r])
    found = await get_experiment(client)
    assert sum(arm.interactions for arm in found.arms) == 6000
    (difference,) = found.differences
    assert abs(difference.difference) < 0.12
    assert difference.verdict == rpb.VERDICT_UNDECIDED


async def test_the_watch_takes_back_a_version_that_is_worse(
    start_server: Any, db: asyncpg.Connection, versions: Versions
) -> None:
    servers = [start_server(**WATCHED) for _ in range(2)]
    async with connect(servers[0].target) as client, connect(servers[1].target) as other:
        for one_client in (client, other):
            await wait_serving(one_client)
        one, two = await versions(client, 2)
        await set_rollout(client, version=one, percent=100)
        started = await set_rollout(client, version=two, percent=50)
        await serves(client, PEOPLE)

        def worse(answer: pb.GetRecommendationParamsResponse) -> list[Any]:
            return [types.REACTION_DISLIKE] if answer.policy_arm == RL else [LIKE]

        await live(client, PEOPLE, worse)

        async def taken_back() -> bool:
            return (await get_rollout(client)).rollout.version == one

        await eventually(taken_back, 180)
        rollout = (await get_rollout(client)).rollout
        assert rollout.automatic
        assert f"version {two} is worse than the previous version" in rollout.reason
        for one_client in (client, other):
            await serves(one_client, PEOPLE)
            answers = await decide(one_client, PEOPLE[:50])
            assert {a.model_version for a in answers} == {one}
        task = await db.fetchrow("SELECT * FROM system_tasks WHERE task_name = 'rollout_watch'")
        metadata = json.loads(task["metadata"])
        assert metadata["experiment"]["differences"][0]["verdict"] == "VERDICT_WORSE"
        assert task["request_id"] == f"experiment-{started.experiment_id}"
        model = await client.models.GetModel(mpb.GetModelRequest(version=two), metadata=ADMIN)
        assert model.model.halted_reason == rollout.reason

        # It does not flap: bad news of the old ramp goes on coming in, and nothing moves again.
        activations = await db.fetchval("SELECT count(*) FROM model_activations")
        await live(client, PEOPLE, worse)
        await asyncio.sleep(2)
        assert await db.fetchval("SELECT count(*) FROM model_activations") == activations
        assert (
            await db.fetchval("SELECT count(*) FROM system_tasks WHERE task_name = 'rollout_watch'")
            == 1
        )
    events = [
        e for server in servers for e in server.events() if e["event"] == "rollout taken back"
    ]
    assert len(events) == 1


async def test_the_watch_leaves_an_equal_version_alone(
    start_server: Any, db: asyncpg.Connection, versions: Versions
) -> None:
    server = start_server(**WATCHED)
    async with connect(server.target) as client:
        await wait_serving(client)
        one, two = await versions(client, 2)
        await set_rollout(client, version=one, percent=100)
        await set_rollout(client, version=two, percent=50)
        await serves(client, PEOPLE)
        for round_number in range(3):
            await live(client, PEOPLE, lambda _, n=round_number: [LIKE if n % 2 else SHOWN])
            await asyncio.sleep(1)
        assert (await get_rollout(client)).rollout.version == two
        assert await db.fetchval("SELECT count(*) FROM model_activations WHERE automatic") == 0


async def test_shadowing_counts_agreement_on_live_traffic(
    client: Client, db: asyncpg.Connection, versions: Versions
) -> None:
    one, two = await versions(client, 2)
    await set_rollout(client, version=one, percent=100)
    await serves(client, PEOPLE)

    async def shadow(version: int) -> None:
        await client.rollout.SetShadow(rpb.SetShadowRequest(version=version), metadata=ADMIN)

    async def counted() -> rpb.GetShadowResponse:
        return await client.rollout.GetShadow(rpb.GetShadowRequest(), metadata=ADMIN)

    served = {m: a.action for m, a in zip(range(8), await decide(client, PEOPLE[:8]), strict=True)}
    await set_rollout(client, version=two, percent=100)
    await serves(client, PEOPLE)
    theirs = dict(enumerate(a.action for a in await decide(client, PEOPLE[:8])))
    await set_rollout(client, version=one, percent=100)
    await serves(client, PEOPLE)

    await shadow(two)

    async def is_shadowing() -> bool:
        return (await get_rollout(client)).rollout.shadow_version == two

    await eventually(is_shadowing)
    await asyncio.sleep(0.5)
    answers = await live(client, PEOPLE, likes_high_energy)
    assert {a.model_version for a in answers} == {one}

    async def flushed() -> bool:
        return (await counted()).decisions == len(PEOPLE)

    await eventually(flushed)
    agree = sum(served[n % 8] == theirs[n % 8] for n in range(len(PEOPLE)))
    found = await counted()
    assert (found.version, found.agreements) == (two, agree)
    assert [p.version for p in found.policies] == [two, one]
    await shadow(0)
    assert (await failure_of(counted())).code == grpc.StatusCode.NOT_FOUND


async def test_only_what_can_be_served_can_be_shadowed(client: Client) -> None:
    for version, code in ((None, "INVALID_ARGUMENT"), (-1, "INVALID_ARGUMENT"), (9, "NOT_FOUND")):
        call = client.rollout.SetShadow(rpb.SetShadowRequest(version=version), metadata=ADMIN)
        assert (await failure_of(call)).code.name == code


async def test_a_decision_names_its_activation(
    client: Client, db: asyncpg.Connection, versions: Versions
) -> None:
    (version,) = await versions(client, 1)
    await set_rollout(client, version=version, percent=10)
    await serves(client, PEOPLE)
    answer = await client.recommendation.GetRecommendationParams(
        request("ada", personality=SEED_PERSONALITY)
    )
    await record(
        client,
        pb.Interaction(
            interaction_id="i",
            user_id="ada",
            decision_token=answer.decision_token,
            reactions=[LIKE],
        ),
    )
    row = await db.fetchrow("SELECT * FROM interactions WHERE interaction_id = 'i'")
    newest = await db.fetchval("SELECT max(id) FROM model_activations")
    assert row["activation_id"] == newest
