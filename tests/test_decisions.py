"""Decisions and their answers: one by one and all at once, against the policy arrays."""

import functools
import math
import operator
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import PREVIOUS, RL, RULE_BASED, Activation, Split
from recparams_rl.exploration import FLOOR, OF_RULES, OFF, POSTERIOR, SCHEDULE, Exploration
from recparams_rl.policy import EXPLORATION, GreedyTable
from recparams_rl.rules import rule_based_action
from recparams_rl.state import TRAITS, Context, StateSpace
from recparams_server.contract.vocabulary import (
    ACTION_MESSAGES,
    ARM_NUMBERS,
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    PARAMS_MESSAGES,
    TIME_OF_DAY_NAMES,
)
from recparams_server.serving.answers import (
    batch_answer,
    batch_entry_prefix,
    source_part,
    version_and_arm_part,
)
from recparams_server.serving.decider import Decider
from recparams_server.serving.policies import Arm, PolicyHolder, Serving, Shadow
from recparams_server.serving.tokens import Decision, TokenCodec
from tests.drawing import with_draws
from tests.support import request

SPACE = StateSpace(bins=3)
CODEC = TokenCodec(b"a key for tests")
Response = pb.GetRecommendationParamsResponse
LARGEST_VERSION = 2**32 - 1


class People(NamedTuple):
    """Who asks, and in which contexts."""

    users: list[bytes]
    traits: np.ndarray
    contexts: np.ndarray


Ask = Callable[[Decider, People], list[bytes]]


def one_by_one(decider: Decider, people: People) -> list[bytes]:
    rows = zip(people.users, people.traits.tolist(), people.contexts.tolist(), strict=True)
    return [decider.decide(user, tuple(traits), tuple(context)) for user, traits, context in rows]


def all_at_once(decider: Decider, people: People) -> list[bytes]:
    return decider.decide_all(*people)


both = pytest.mark.parametrize("ask", [one_by_one, all_at_once])


def crowd(n: int, seed: int = 1) -> People:
    """People anywhere in the space, many of them on edges of bins."""
    generator = np.random.default_rng(seed)
    anywhere = generator.uniform(0, 100, (n, 5)).astype(np.float32)
    edges = generator.choice(np.array([0, 100 / 3, 200 / 3, 100], dtype=np.float32), (n, 5))
    traits = np.where(generator.random((n, 5)) < 0.3, edges, anywhere)
    contexts = generator.integers([1, 1, 1], [4, 9, 5], (n, 3)).astype(np.uint8)
    return People([f"user-{i}-é".encode() for i in range(n)], traits, contexts)


def policy(seed: int, epsilon: float = 0.0) -> GreedyTable:
    """Any action, by any source, in every state."""
    generator = np.random.default_rng(seed)
    actions, sources = (generator.integers(top, size=SPACE.n_states) for top in (N_ACTIONS, 3))
    columns = actions.astype(np.uint8).tobytes(), sources.astype(np.uint8).tobytes()
    return GreedyTable(SPACE, *columns, epsilon)


def serving(*arms: Arm, version: int = 7, shadow: Shadow | None = None) -> Serving:
    """With the arms' shares as the split."""
    percent = {arm.name: 100 * arm.share for arm in arms}
    split = Split(percent.get(RL, 0.0), percent.get(RULE_BASED, 0.0), "salt")
    return Serving(arms, Activation(41, version, None, split, 0, None), 41, shadow=shadow)


def decider_of(what: Serving, exploration: Exploration = SCHEDULE) -> Decider:
    holder = PolicyHolder(SPACE, 0.0)
    holder.serving = what
    return Decider(holder, CODEC, exploration)


ONE = (Arm(RL, 7, policy(1), 1.0),)
EXPLORING = (Arm(RL, 7, policy(1, epsilon=0.3), 1.0),)
THREE = (
    Arm(RL, 7, policy(1), 0.5),
    Arm(PREVIOUS, 6, policy(2), 0.25),
    Arm(RULE_BASED, 0, policy(3), 0.25),
)
THREE_EXPLORING = tuple(
    replace(arm, policy=replace(arm.policy, epsilon=epsilon))
    for arm, epsilon in zip(THREE, (0.3, 0.5, 0.0), strict=True)
)
DRAWING = (Arm(RL, 7, with_draws(policy(1, epsilon=FLOOR), 1), 1.0),)
THREE_DRAWING = (
    Arm(RL, 7, with_draws(policy(1, epsilon=FLOOR), 1), 0.5),
    Arm(PREVIOUS, 6, with_draws(policy(2, epsilon=FLOOR), 2), 0.25),
    Arm(RULE_BASED, 0, policy(3, epsilon=FLOOR), 0.25),
)
EVERY = {
    "one": serving(*ONE),
    "rules": serving(Arm(RULE_BASED, 0, policy(3), 1.0), version=0),
    "previous": serving(Arm(PREVIOUS, 128, policy(3), 1.0), version=129),
    "large version": serving(Arm(RL, LARGEST_VERSION, policy(4), 1.0), version=LARGEST_VERSION),
    "three": serving(*THREE),
    "exploring": serving(*EXPLORING),
    "three exploring": serving(*THREE_EXPLORING),
}


def state_of(traits: list[float], context: tuple[int, ...]) -> int:
    content_type, mood, time_of_day = context
    names = CONTENT_TYPE_NAMES[content_type], MOOD_NAMES[mood], TIME_OF_DAY_NAMES[time_of_day]
    return SPACE.index(traits, Context(*names))


def read(answer: bytes, user: bytes) -> tuple[Response, Decision]:
    """An answer and its token, which must say the same, in protobuf's own encoding."""
    response = Response.FromString(answer)
    assert response.SerializeToString() == answer
    token = CODEC.read(response.decision_token, user.decode())
    assert response.params == PARAMS_MESSAGES[token.action]
    assert response.action == ACTION_MESSAGES[token.action]
    assert (response.model_version, response.policy_arm, response.source) == (
        token.model_version,
        token.arm,
        token.source,
    )
    assert np.float32(response.propensity) == token.propensity
    return response, token


def without_chance(answer: bytes, user: bytes) -> tuple[bytes, Decision]:
    """What is the same whenever, and however often, somebody asks."""
    response, token = read(answer, user)
    response.ClearField("decision_token")
    return response.SerializeToString(), token._replace(decision_id=0, decided_at=0)


@both
@pytest.mark.parametrize("served", EVERY.values(), ids=EVERY)
def test_answers_say_what_the_policies_say(ask: Ask, served: Serving) -> None:
    random.seed(1)
    people = crowd(2000)
    decider = decider_of(served)
    answers = ask(decider, people)
    seen = Counter()
    for answer, user, traits, context in zip(answers, *people, strict=True):
        response, token = read(answer, user)
        state = state_of(traits.tolist(), tuple(context.tolist()))
        arm = served.arm_of(user.decode())
        greedy = token.action == arm.policy.actions[state]
        # The first three sources of the contract are those of policies, from 1 on.
        source = arm.policy.sources[state] if greedy else EXPLORATION
        assert token.source == source + 1
        assert greedy or arm.policy.epsilon
        assert (token.arm, token.model_version) == (ARM_NUMBERS[arm.name], arm.version)
        assert token.traits == tuple(traits.tolist())
        assert (token.content_type, token.mood, token.time_of_day) == tuple(context)
        assert token.activation == served.plan.id
        chance = sum(
            one.share * one.policy.epsilon / N_ACTIONS
            + one.share * (1 - one.policy.epsilon) * (one.policy.actions[state] == token.action)
            for one in served.arms
        )
        assert 0 < response.propensity <= 1
        assert math.isclose(response.propensity, chance, rel_tol=1e-12)
        no_model = served.version == 0
        assert response.fallback_reason == (pb.FALLBACK_REASON_NO_MODEL if no_model else 0)
        seen[token.action, "action"] += 1
        seen[arm.name, arm.version, source] += 1
    assert {key[0] for key in seen if len(key) == 2} == set(range(N_ACTIONS))
    counted = {
        (*arm, source): count
        for arm, counts in decider.decided.items()
        for source, count in enumerate(counts)
        if count
    }
    assert counted == {key: count for key, count in seen.items() if len(key) == 3}


@pytest.mark.parametrize("arms", [ONE, THREE], ids=["one", "three"])
def test_one_by_one_and_all_at_once_are_the_same(arms: tuple[Arm, ...]) -> None:
    people = crowd(3000, seed=2)
    shadows = [Shadow(1, 8, policy(9)), Shadow(1, 8, policy(9))]
    plans = [serving(*arms, shadow=shadow) for shadow in shadows]
    deciders = [decider_of(plan) for plan in plans]
    single, several = (
        [without_chance(*each) for each in zip(ask(decider, people), people.users, strict=True)]
        for ask, decider in zip((one_by_one, all_at_once), deciders, strict=True)
    )
    assert single == several
    assert {token.arm for _, token in single} == {ARM_NUMBERS[arm.name] for arm in arms}
    assert deciders[0].decided == deciders[1].decided
    assert shadows[0] == shadows[1]


@both
@pytest.mark.parametrize("arms", [EXPLORING, THREE_EXPLORING], ids=["one", "three"])
def test_shadows_agree_with_what_is_greedy(ask: Ask, arms: tuple[Arm, ...]) -> None:
    people = crowd(2000, seed=4)
    shadow = Shadow(1, 8, policy(9))
    served = serving(*arms, shadow=shadow)
    ask(decider_of(served), people)
    agreed = 0
    for user, traits, context in zip(*people, strict=True):
        state = state_of(traits.tolist(), tuple(context.tolist()))
        arm = served.arm_of(user.decode())
        agreed += shadow.policy.actions[state] == arm.policy.actions[state]
    assert (shadow.decisions, shadow.agreements) == (2000, agreed)
    assert 0 < agreed < 2000


@both
@pytest.mark.parametrize(
    ("arms", "exploration"),
    [(EXPLORING, SCHEDULE), (ONE, Exploration(0.3)), (THREE, Exploration(0.3))],
    ids=["by policy", "by setting", "three arms"],
)
def test_exploration_is_as_frequent_as_it_says(
    ask: Ask, arms: tuple[Arm, ...], exploration: Exploration
) -> None:
    n, epsilon = 12_000, 0.3
    random.seed(5)
    person = crowd(1, seed=3)
    people = People(
        [f"user-{i}".encode() for i in range(n)],
        person.traits.repeat(n, axis=0),
        person.contexts.repeat(n, axis=0),
    )
    answers = ask(decider_of(serving(*arms), exploration), people)
    read_all = [read(*each) for each in zip(answers, people.users, strict=True)]
    assert len({token.decision_id for _, token in read_all}) == n

    explored = sum(r.source == pb.DECISION_SOURCE_EXPLORATION for r, _ in read_all)
    assert_binomial(explored, n, epsilon * (N_ACTIONS - 1) / N_ACTIONS)
    drawn = Counter(token.action for _, token in read_all)
    chances = {token.action: response.propensity for response, token in read_all}
    assert len(drawn) == N_ACTIONS and math.isclose(sum(chances.values()), 1.0)
    for action, count in drawn.items():
        assert_binomial(count, n, chances[action])


@both
@pytest.mark.parametrize("arms", [DRAWING, THREE_DRAWING], ids=["one arm", "three arms"])
def test_draws_are_as_frequent_as_they_say(ask: Ask, arms: tuple[Arm, ...]) -> None:
    n = 12_000
    random.seed(6)
    person = crowd(1, seed=4)
    people = People(
        [f"user-{i}".encode() for i in range(n)],
        person.traits.repeat(n, axis=0),
        person.contexts.repeat(n, axis=0),
    )
    state = state_of(person.traits[0].tolist(), tuple(person.contexts[0].tolist()))
    answers = ask(decider_of(serving(*arms), POSTERIOR), people)
    expected = np.zeros(N_ACTIONS)
    for arm in arms:
        expected += arm.share * arm.policy.exploring_dist(np.array([state]))[0]
    counts = np.zeros(N_ACTIONS, dtype=int)
    for answer, user in zip(answers, people.users, strict=True):
        response, token = read(answer, user)
        counts[token.action] += 1
        assert math.isclose(response.propensity, expected[token.action])
        served = next(arm for arm in arms if ARM_NUMBERS[arm.name] == response.policy_arm)
        is_greedy = token.action == served.policy.actions[state]
        assert is_greedy == (response.source != pb.DECISION_SOURCE_EXPLORATION)
    for count, chance in zip(counts.tolist(), expected.tolist(), strict=True):
        assert_binomial(count, n, chance)


@both
def test_draws_are_left_out_unless_they_are_asked_for(ask: Ask) -> None:
    people = crowd(300)
    for exploration in (OFF, SCHEDULE):
        for answer in ask(decider_of(serving(*DRAWING), exploration), people):
            found = Response.FromString(answer)
            if found.source != pb.DECISION_SOURCE_EXPLORATION:
                epsilon = 0.0 if exploration == OFF else FLOOR
                assert found.propensity == pytest.approx(1.0 - epsilon + epsilon / N_ACTIONS)


@both
def test_the_rules_alone_explore_at_random(ask: Ask) -> None:
    alone = serving(Arm(RULE_BASED, 0, with_draws(policy(3), 3), 1.0), version=0)
    for answer in ask(decider_of(alone, POSTERIOR), crowd(300)):
        found = Response.FromString(answer)
        greedy = 0.0 if found.source == pb.DECISION_SOURCE_EXPLORATION else 1.0 - OF_RULES
        assert found.propensity == pytest.approx(OF_RULES / N_ACTIONS + greedy)


def assert_binomial(count: int, n: int, chance: float) -> None:
    assert abs(count - n * chance) < 4.5 * math.sqrt(n * chance * (1 - chance))


@both
def test_without_exploration_nobody_explores(ask: Ask) -> None:
    people = crowd(500)
    answers = ask(decider_of(serving(*THREE_EXPLORING), exploration=OFF), people)
    assert answers
    for answer in answers:
        assert Response.FromString(answer).source != pb.DECISION_SOURCE_EXPLORATION


@both
@pytest.mark.parametrize("arms", [ONE, THREE], ids=["one", "three"])
@pytest.mark.parametrize(
    "context",
    [(0, 1, 1), (1, 0, 1), (1, 1, 0), (4, 1, 1), (1, 9, 1), (1, 1, 5), (127, 1, 1), (255,) * 3],
)
def test_unknown_contexts_are_refused(
    ask: Ask, arms: tuple[Arm, ...], context: tuple[int, int, int]
) -> None:
    people = crowd(5)
    people.contexts[-1] = context
    refuses(ask, arms, people, KeyError)


@both
@pytest.mark.parametrize("arms", [ONE, THREE], ids=["one", "three"])
@pytest.mark.parametrize("trait", range(5))
@pytest.mark.parametrize(
    "score", [math.nan, math.inf, -math.inf, -1e-45, float(np.nextafter(np.float32(100), 101))]
)
def test_scores_out_of_range_are_refused(
    ask: Ask, arms: tuple[Arm, ...], trait: int, score: float
) -> None:
    people = crowd(5)
    people.traits[-1, trait] = score
    refuses(ask, arms, people, ValueError)


def refuses(ask: Ask, arms: tuple[Arm, ...], people: People, error: type[Exception]) -> None:
    """Whether the last of these people is refused, and nothing is counted of it."""
    shadow = Shadow(1, 8, policy(9))
    decider = decider_of(serving(*arms, shadow=shadow))
    last = People(people.users[-1:], people.traits[-1:], people.contexts[-1:])
    for asking in (last, people) if ask is all_at_once else (last,):
        with pytest.raises(error):
            ask(decider, asking)
    assert not any(map(sum, decider.decided.values()))
    assert (shadow.decisions, shadow.agreements) == (0, 0)


@both
def test_a_new_plan_is_followed_at_once(ask: Ask) -> None:
    people = crowd(50)
    holder = PolicyHolder(SPACE, 0.0)
    decider = Decider(holder, CODEC, SCHEDULE)
    for served in (*EVERY.values(), EVERY["one"]):
        holder.serving = served
        versions = {Response.FromString(answer).model_version for answer in ask(decider, people)}
        assert versions == {arm.version for arm in served.arms}


def test_plain_requests_are_answered_and_others_left() -> None:
    decider = decider_of(serving(*ONE))
    answer = decider.answer(request().SerializeToString())
    assert answer is not None
    read(answer, b"ada")
    assert sum(map(sum, decider.decided.values())) == 1
    too_open = request()
    too_open.personality.openness = 101
    for other in (request(mood=0), request(mood=9), request(personality=None), too_open):
        assert decider.answer(other.SerializeToString()) is None
    assert decider.answer(b"") is None
    assert sum(map(sum, decider.decided.values())) == 1


@pytest.mark.parametrize("served", [EVERY["one"], EVERY["three"]], ids=["one", "three"])
@pytest.mark.parametrize("reason", pb.FallbackReason.values())
def test_without_a_profile_the_rules_answer(served: Serving, reason: int) -> None:
    decider = decider_of(served)
    for number, context in enumerate(decider.contexts):
        user = f"user-{number}"
        response, token = read(
            decider.decide_without_profile(user.encode(), reason, context), user.encode()
        )
        names = Context(
            CONTENT_TYPE_NAMES[context[0]], MOOD_NAMES[context[1]], TIME_OF_DAY_NAMES[context[2]]
        )
        assert token.action == rule_based_action((50.0,) * 5, names).index
        assert (token.content_type, token.mood, token.time_of_day) == context
        assert (token.model_version, token.propensity) == (0, 1.0)
        assert token.arm == ARM_NUMBERS[served.arm_of(user).name]
        assert token.activation == served.plan.id
        assert np.isnan(token.traits).all()
        assert response.source == pb.DECISION_SOURCE_RULE_BASED
        assert response.fallback_reason == reason


@pytest.mark.parametrize("version", [0, 1, 127, 128, LARGEST_VERSION, 2**63 - 1])
@pytest.mark.parametrize("arm", pb.PolicyArm.values())
def test_parts_are_what_protobuf_encodes(version: int, arm: int) -> None:
    for source in pb.DecisionSource.values():
        for reason in pb.FallbackReason.values():
            parts = (
                version_and_arm_part(version, arm)
                + np.float64(0.25).tobytes()
                + source_part(source, reason)
            )
            assert (
                parts
                == Response(
                    model_version=version,
                    policy_arm=arm,
                    propensity=0.25,
                    source=source,
                    fallback_reason=reason,
                ).SerializeToString()
            )


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 255, 256, 300, 16383])
def test_lengths_in_batches(length: int) -> None:
    """A string that is field 1 is encoded as an answer in a batch is."""
    encoded = pb.GetRecommendationParamsRequest(user_id="x" * length).SerializeToString()
    assert batch_entry_prefix(length) + b"x" * length == encoded


@pytest.mark.parametrize("served", EVERY.values(), ids=EVERY)
def test_a_batch_is_its_answers_in_order(served: Serving) -> None:
    decider = decider_of(served)
    answers = decider.decide_all(*crowd(256))
    answers += [
        decider.decide_without_profile(b"u", pb.FALLBACK_REASON_NO_PROFILE, context)
        for context in decider.contexts
    ]
    batch = batch_answer(answers)
    parsed = pb.BatchGetRecommendationParamsResponse.FromString(batch)
    assert parsed.SerializeToString() == batch
    assert [one.SerializeToString() for one in parsed.responses] == answers
    assert batch_answer([]) == b""


@pytest.mark.parametrize("bins", range(1, 11))
def test_a_cell_is_the_same_however_it_is_computed(bins: int) -> None:
    """On the edges of bins too, and next to them, in both float widths."""
    space = StateSpace(bins)
    edges = np.array([e for i in range(bins + 1) for e in (i * 100 / bins, i * (100 / bins))])
    near = [edges, np.nextafter(edges, -1), np.nextafter(edges, 101)]
    narrow = edges.astype(np.float32)
    near += [narrow, np.nextafter(narrow, np.float32(-1)), np.nextafter(narrow, np.float32(101))]
    pool = np.concatenate([*near, np.linspace(0, 100, 30), [0.0, -0.0, 5e-324, 50.0]])
    pool = pool[(pool >= 0) & (pool <= 100)]
    rows = np.random.default_rng(bins).choice(pool, (1500, 5))
    for traits in (rows, rows.astype(np.float32)):
        expected = [
            sum(
                space.discretize(score) * bins ** (len(TRAITS) - 1 - place)
                for place, score in enumerate(row)
            )
            for row in traits.tolist()
        ]
        assert space.cells(traits.astype(np.float64)).tolist() == expected
        assert [space.cell(row) for row in traits.tolist()] == expected
        assert [space.cell(row) for row in traits] == expected
        zero = np.zeros(len(traits), dtype=np.int8)
        states = space.index_columns(traits, zero, zero, zero)
        assert states.tolist() == [cell * space.n_contexts for cell in expected]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, -5e-324, 100.00000000000001])
@pytest.mark.parametrize("place", range(10))
def test_cells_refuse_scores_out_of_range(score: float, place: int) -> None:
    traits = np.full((2, 5), 50.0)
    traits.flat[place] = score
    with pytest.raises(ValueError, match="from 0 to 100"):
        SPACE.cells(traits)
    with pytest.raises(ValueError, match="from 0 to 100"):
        SPACE.cell(traits[place // 5])


@both
def test_what_is_certain_has_propensity_one(ask: Ask) -> None:
    """Also where shares that sum to 1 come to a little more in floating point."""
    shares = Split(56, 11).shares()
    # One after another as the decider adds: `sum` makes up for lost digits since Python 3.12.
    assert functools.reduce(operator.add, shares.values()) > 1.0
    same = policy(1)
    arms = (Arm(name, 7, same, share) for name, share in shares.items())
    people = crowd(50)
    for answer, user in zip(ask(decider_of(serving(*arms)), people), people.users, strict=True):
        assert read(answer, user)[0].propensity == 1.0
