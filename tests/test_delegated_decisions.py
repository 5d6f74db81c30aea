"""Decisions that callers made by themselves, held against what was served to them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2
from recparams_client import Interaction, LocalPolicy, RecParamsClient
from recparams_client.conversion import CONTENT_TYPES, MOODS, TIMES_OF_DAY
from recparams_client.deciding import Decider as LocalDecider
from recparams_client.sealing import SealingKey
from recparams_client.snapshot import decode
from recparams_client.types import DecisionRequest, PersonalityProfile
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import PREVIOUS, RL, RULE_BASED, Activation, Split
from recparams_rl.exploration import OFF, POSTERIOR, SCHEDULE, Exploration
from recparams_rl.learners.features import n_features
from recparams_rl.learners.lin_ts import SampledLinearPolicy
from recparams_rl.policy import GreedyTable, Policy, rule_based_policy
from recparams_rl.state import MOODS as ALL_MOODS
from recparams_rl.state import StateSpace
from recparams_server.app import App
from recparams_server.contract.vocabulary import SOURCE_NUMBERS, context_table
from recparams_server.services import served_plans
from recparams_server.serving.delegated_decisions import DelegatedDecision, ServedPlan, problem
from recparams_server.serving.delegated_tokens import Told, told_of
from recparams_server.serving.policies import Arm, PolicyHolder, Serving
from recparams_server.serving.snapshots import encode
from recparams_server.serving.tokens import Decision, TokenCodec
from recparams_server.settings import Settings
from recparams_server.store.activations import Shares, activate, set_rollout
from tests.delegating import ADA, Caller, recording, store_version
from tests.drawing import with_draws
from tests.support import Client, Failure, failure_of, in_process

SPACE = StateSpace(bins=3, moods=tuple(mood for mood in ALL_MOODS if mood != "stressed"))
CONTEXTS = context_table(SPACE)
CODEC = TokenCodec(b"key")
PEOPLE = [f"person-{n}" for n in range(40)]
FORGED = (1e-45, 1e-30, 5e-4)
RULES = rule_based_policy(SPACE, 0.3)
EXPLORING = pb.DECISION_SOURCE_EXPLORATION


def table(seed: int, epsilon: float) -> GreedyTable:
    """Any action, by any source, in every state."""
    generator = np.random.default_rng(seed)
    actions, sources = (generator.integers(top, size=SPACE.n_states) for top in (N_ACTIONS, 3))
    columns = actions.astype(np.uint8).tobytes(), sources.astype(np.uint8).tobytes()
    return with_draws(GreedyTable(SPACE, *columns, epsilon), seed)


def one_arm(epsilon: float) -> Serving:
    plan = Activation(9, 8, None, Split(), 7, None)
    return Serving((Arm(RL, 8, table(8, epsilon), 1.0),), plan, 9)


def three_arms(epsilon: float) -> Serving:
    arms = (
        Arm(RL, 8, table(8, epsilon), 0.3),
        Arm(PREVIOUS, 7, table(7, epsilon / 2), 0.5),
        Arm(RULE_BASED, 0, RULES, 0.2),
    )
    return Serving(arms, Activation(9, 8, None, Split(30, 20, "pepper"), 7, None), 9)


def served_of(serving: Serving, *lost: int) -> ServedPlan:
    """The plan as decisions are held against it, without the policies of some versions."""
    policies = {arm.version: arm.policy for arm in serving.arms if arm.version not in lost}
    return ServedPlan(serving.plan, policies)


def made(serving: Serving, exploration: Exploration, count: int) -> list[DelegatedDecision]:
    """Decisions of the client library, where it is told this; one in ten is of nobody known."""
    told = Told.of(exploration, RULES)
    key = CODEC.delegate(int(time.time()), told)
    encoded = encode(SPACE, serving, exploration)
    decider = LocalDecider(
        decode(encoded.compressed, encoded.checksum),
        lambda: SealingKey(key.id, key.key, key.expires_at),
    )
    rng = np.random.default_rng(1)
    contexts = [*CONTEXTS]
    found = []
    for number in range(count):
        content, mood, hour = contexts[int(rng.integers(len(contexts)))]
        names = CONTENT_TYPES[content], MOODS[mood], TIMES_OF_DAY[hour]
        user = PEOPLE[number % len(PEOPLE)]
        profile = PersonalityProfile(*rng.uniform(0, 100, 5).tolist())
        if number % 10 == 0:
            one = decider.decide_without_profile(user, *names)
        else:
            one = decider.decide(user, profile, *names)
        read, by_key = CODEC.read(one.decision_token, user), told_of(one.decision_token)
        assert by_key == Told(pytest.approx(told.epsilon), told.everywhere, told.by_draws)
        assert by_key is not None
        found.append(DelegatedDecision("path", user, read, by_key))
    return found


def held(served: ServedPlan, one: DelegatedDecision, exploration: Exploration) -> str:
    """Why a server with this setting refuses a decision."""
    return problem(served, SPACE, CONTEXTS, one, Told.of(exploration, RULES))


def changed(one: DelegatedDecision, **fields: Any) -> DelegatedDecision:
    return replace(one, decision=one.decision._replace(**fields))


def forgeries(decision: Decision) -> list[dict[str, Any]]:
    """Changes of a decision, each of which what was served cannot have led to."""
    return [
        *({"propensity": forged} for forged in FORGED),
        {"propensity": 0.99 * decision.propensity},
        {"model_version": decision.model_version + 1},
        {"mood": types_pb2.MOOD_STRESSED},
        *({"arm": arm} for arm in (1, 2, 3) if arm != decision.arm),
        *({"source": source} for source in SOURCE_NUMBERS if source != decision.source),
    ]


@pytest.mark.parametrize("arrange", [one_arm, three_arms])
@pytest.mark.parametrize(
    "exploration", [SCHEDULE, OFF, Exploration(0.1), Exploration(1.0), POSTERIOR], ids=repr
)
def test_what_was_served_is_taken_and_nothing_else(
    arrange: Callable[[float], Serving], exploration: Exploration
) -> None:
    serving = arrange(0.3)
    served, decisions = served_of(serving), made(serving, exploration, 300)
    explored = any(one.decision.source == EXPLORING for one in decisions)
    assert explored == (exploration != OFF)
    for one in decisions:
        assert held(served, one, exploration) == ""
        for forged in forgeries(one.decision):
            assert held(served, changed(one, **forged), exploration), (one, forged)


@pytest.mark.parametrize("arrange", [one_arm, three_arms])
def test_without_exploration_only_an_arms_own_action_is_taken(
    arrange: Callable[[float], Serving],
) -> None:
    serving = arrange(0.0)
    for one in made(serving, OFF, 50):
        for action in range(N_ACTIONS):
            for source in SOURCE_NUMBERS:
                forged = changed(one, action=action, source=source)
                taken = held(served_of(serving), forged, OFF) == ""
                assert taken == (forged == one)


def test_exploration_may_be_set_anew_before_a_reaction_arrives() -> None:
    for arrange in (one_arm, three_arms):
        served = served_of(arrange(0.3))
        for told in (SCHEDULE, OFF, POSTERIOR):
            for one in made(arrange(0.3), told, 100):
                for now in (SCHEDULE, OFF, Exploration(0.2), POSTERIOR):
                    assert held(served, one, now) == ""


def test_a_policy_that_is_gone_leaves_a_bound() -> None:
    serving = three_arms(0.3)
    for lost in ((8,), (7,), (7, 8)):
        served = served_of(serving, *lost)
        for exploration in (SCHEDULE, Exploration(0.1), Exploration(0.01)):
            for one in made(serving, exploration, 100):
                assert held(served, one, exploration) == ""
                if one.decision.model_version:
                    for forged in (1e-45, 1e-30, 1e-4):
                        assert held(served, changed(one, propensity=forged), exploration)
                other = changed(one, model_version=one.decision.model_version + 1)
                assert held(served, other, exploration)


def test_policies_that_are_no_tables_are_held_to_their_probabilities() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(20, N_ACTIONS, n_features(SPACE))).astype(np.float32)
    linear = SampledLinearPolicy(SPACE, samples, 0.1)
    plan = Activation(9, 8, None, Split(), 7, None)
    served = ServedPlan(plan, {8: linear})
    for one in made(one_arm(0.1), SCHEDULE, 60):
        traits = one.decision.traits
        if np.isnan(traits[0]):
            continue
        context = one.decision.content_type, one.decision.mood, one.decision.time_of_day
        state = SPACE.cell(traits) * SPACE.n_contexts + CONTEXTS[context]
        (dist,) = linear.action_dist(np.array([state]), np.array([traits]))
        for action in range(N_ACTIONS):
            likeliest = action == dist.argmax()
            honest = changed(
                one,
                action=action,
                propensity=0.9 * dist[action] + 0.1 / N_ACTIONS,
                source=SOURCE_NUMBERS[0] if likeliest else EXPLORING,
            )
            assert held(served, honest, SCHEDULE) == ""
            for forged in (*FORGED, 0.5 * honest.decision.propensity):
                assert held(served, changed(honest, propensity=forged), SCHEDULE)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url, tmp_path, bins=3, moods=SPACE.moods, exploration=0.2, gates="report"
    )


async def serve(app: App, db: asyncpg.Connection, version: int) -> None:
    """Activates a version for everybody, and waits until it is served."""
    async with db.transaction():
        await activate(db, version, 0.0, "a test")
    await arrival(app, await db.fetchval("SELECT max(id) FROM model_activations"))


async def arrival(app: App, activation: int) -> None:
    async with asyncio.timeout(20):
        while app._holder.serving.plan.id != activation:
            await asyncio.sleep(0.01)


async def refused(client: Client, *interactions: pb.Interaction) -> Failure:
    failure = await failure_of(recording(client, *interactions))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    return failure


async def test_each_forgery_is_named_and_changes_nothing(
    app: App, client: Client, db: asyncpg.Connection
) -> None:
    version = await store_version(db, table(1, 0.3))
    await serve(app, db, version)
    caller = await Caller.following(client)
    now, day = time.time_ns() // 1_000_000, 86_400_000
    made_all = [caller.decider.decide("ada", ADA, "music", "calm", "evening") for _ in range(99)]
    greedy = next(one._made[4] for one in made_all if one._made[6] != EXPLORING)
    another = {"action": (greedy + 1) % N_ACTIONS, "source": pb.DECISION_SOURCE_LEARNED}
    forgeries: list[tuple[dict[str, Any], str]] = [
        *(({"propensity": one}, "names propensity") for one in FORGED),
        ({"activation": 99}, "there never was"),
        ({"activation": 0}, "names another arm"),
        ({"model_version": version + 1}, f"where version {version} was served"),
        ({"arm": pb.POLICY_ARM_PREVIOUS}, "names another arm than rl"),
        ({**another, "propensity": 0.2 / N_ACTIONS}, "names another source"),
        ({**another, "source": EXPLORING, "propensity": 0.8}, "names propensity 0.8"),
        ({"context": (1, types_pb2.MOOD_STRESSED, 1)}, "names a context"),
        ({"scores": (float("nan"),) * 5}, "not what the rules say"),
        ({"decided_at": now - 10 * 60_000}, "outside the lifetime of its key"),
        ({"decided_at": now + 2 * day}, "outside the lifetime of its key"),
        ({"decided_at": now + 10 * 60_000}, "in the future"),
    ]
    for changes, why in forgeries:
        three = caller.interaction(), caller.interaction(**changes), caller.interaction("bob")
        failure = await refused(client, *three)
        assert list(failure.violations) == ["interactions[1].decision_token"], changes
        assert why in failure.violations["interactions[1].decision_token"]
    failure = await refused(client, caller.interaction(occurred_at=now - 6 * 60_000))
    assert failure.violations == {
        "interactions[0].occurred_at": "lies more than 5 minutes before its decision"
    }
    assert await db.fetchval("SELECT count(*) FROM interactions") == 0
    people = [caller.interaction(user) for user in PEOPLE]
    assert (await recording(client, *people)).recorded == len(PEOPLE)


async def test_clocks_may_be_some_minutes_apart(client: Client) -> None:
    caller = await Caller.following(client)
    now, minutes = time.time_ns() // 1_000_000, 60_000
    honest = [
        caller.interaction(decided_at=now + 4 * minutes),
        caller.interaction(decided_at=now - 4 * minutes),
        caller.interaction(occurred_at=now - 4 * minutes),
        caller.interaction(decided_at=now + 2 * minutes, occurred_at=now - 2 * minutes),
    ]
    assert (await recording(client, *honest)).recorded == len(honest)


async def test_decisions_by_what_was_served_before_are_taken(
    app: App, client: Client, db: asyncpg.Connection
) -> None:
    callers = [await Caller.following(client)]
    first, second = await store_version(db, table(1, 0.3)), await store_version(db, table(2, 0.3))
    await serve(app, db, first)
    callers.append(await Caller.following(client))
    async with db.transaction():
        await set_rollout(db, second, Shares(40.0, 10.0, 0.0), "a test")
    await arrival(app, 2)
    callers.append(await Caller.following(client))
    await serve(app, db, second)
    callers.append(await Caller.following(client))
    assert [one.snapshot.activation for one in callers] == [0, 1, 2, 3]
    for _ in range(2):
        people = [one.interaction(user) for one in callers for user in PEOPLE]
        assert (await recording(client, *people)).recorded == len(people)
    for number, caller in enumerate(callers[:3]):
        for other in {1, 2, 3} - {number}:
            forged = {"activation": other, "propensity": 0.0123}
            assert await refused(client, caller.interaction(**forged))


async def test_a_version_that_is_damaged_later_leaves_a_bound(
    app: App, client: Client, db: asyncpg.Connection
) -> None:
    first, second = await store_version(db, table(1, 0.3)), await store_version(db, table(2, 0.3))
    await serve(app, db, first)
    caller = await Caller.following(client)
    await serve(app, db, second)
    await db.execute("UPDATE model_versions SET policy = 'damaged' WHERE version = $1", first)
    people = [caller.interaction(user) for user in PEOPLE]
    assert (await recording(client, *people)).recorded == len(people)
    failure = await refused(client, caller.interaction(propensity=1e-30))
    assert "below" in failure.violations["interactions[0].decision_token"]


async def test_few_plans_are_kept(
    app: App, client: Client, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = served_plans.load_policy

    async def counted(*given: Any) -> Policy:
        loaded.append(given[1])
        return await load(*given)

    monkeypatch.setattr(served_plans, "load_policy", counted)
    versions = [await store_version(db, table(n, 0.3)) for n in range(served_plans.MOST_PLANS + 3)]
    callers = []
    for version in versions:
        await serve(app, db, version)
        callers.append(await Caller.following(client))
    for _ in range(2):
        batch = [one.interaction(user) for user in PEOPLE for one in callers]
        assert (await recording(client, *batch)).recorded == len(batch)
    # The last one is served; each of the others was in the way of another.
    assert loaded == 2 * versions[:-1]
    loaded.clear()
    for _ in range(3):
        assert (await recording(client, callers[-2].interaction())).recorded == 1
    assert not loaded


async def test_the_client_library_is_believed_over_a_change_of_key_and_version(
    app: App, client: Client, db: asyncpg.Connection
) -> None:
    await serve(app, db, await store_version(db, table(1, 0.3)))
    target = f"127.0.0.1:{app.port}"
    with LocalPolicy(target) as local, RecParamsClient(target) as remote:
        assert await asyncio.to_thread(local.wait, 10)
        requests = [
            DecisionRequest(user, "music", "calm", "evening", personality=profile)
            for user in PEOPLE
            for profile in (ADA, None)
        ]
        early = [local.decide(one) for one in requests]
        # As if a key had come an hour later, before these tokens are made.
        there = app._runtime.require_tokens()
        told = Told.of(Exploration(0.2), app._holder.rules)
        later = there.delegate(int(time.time()) + 3600, told)
        local._watcher.key = SealingKey(later.id, later.key, later.expires_at)
        await serve(app, db, await store_version(db, table(2, 0.3)))
        reactions = [
            Interaction(one.user_id, made.decision_token, ("like",))
            for one, made in zip(requests, early, strict=True)
        ]
        stored = await asyncio.to_thread(remote.record_interactions, reactions)
    assert stored.recorded == len(requests)


def test_a_holder_before_any_policy_has_the_rules() -> None:
    serving = PolicyHolder(SPACE, 0.3).serving
    for one in made(serving, SCHEDULE, 50):
        assert held(served_of(serving), one, SCHEDULE) == ""
